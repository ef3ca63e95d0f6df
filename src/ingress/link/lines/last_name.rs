//! Who spoke last on a port: noted on the disk, because a PLC that said its name once does not notice our restart.
//!
//! Owns one small file for each port, `links/<link>.uid` in the data folder. A socket has none: each of its connections
//! says its own name. Never decides whose a request is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::message::is_uid;
use crate::durable;
use crate::ingress::link::{Link, Place};

/// The folder below the data folder.
const FOLDER: &str = "links";

/// One port's note; clones share it.
#[derive(Debug, Clone)]
pub(super) struct LastName {
    /// None where connections come and go with their devices.
    path: Option<PathBuf>,
    /// What is on the disk; held for a copy only, since whoever has the line looks here.
    noted: Arc<Mutex<String>>,
    /// Held while it is written, so that the latest name is the one that stays.
    writing: Arc<Mutex<()>>,
}

impl LastName {
    /// Of this link.
    pub(super) fn of(link: &Link) -> LastName {
        let is_port = matches!(link.options.place, Place::Device(_) | Place::Address(_));
        let path = is_port.then(|| link.data_dir.join(FOLDER).join(format!("{}.uid", link.options.name)));
        LastName { path, noted: Arc::default(), writing: Arc::default() }
    }

    /// The name that was said last; empty where none was.
    pub(super) async fn last(&self) -> String {
        let names = self.clone();
        tokio::task::spawn_blocking(move || names.read()).await.unwrap_or_default()
    }

    fn read(&self) -> String {
        let text = self.path.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let name = text.trim_end();
        // What a worn flash made of it is nobody's name.
        let name = if is_uid(name) { name.to_owned() } else { String::new() };
        name.clone_into(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        name
    }

    /// Notes a name down where it is not yet; says whether it is on the disk. The empty one always is.
    pub(super) async fn note(self, name: String) -> bool {
        let is_noted = *self.noted.lock().unwrap_or_else(PoisonError::into_inner) == name;
        if self.path.is_none() || name.is_empty() || is_noted {
            return true;
        }
        let written = tokio::task::spawn_blocking(move || self.write(&name)).await;
        match written.map_err(io::Error::other).and_then(|written| written) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(HOLDFAST_REASON = "storage", "a device's name cannot be noted down: {error}");
                false
            }
        }
    }

    fn write(&self, name: &str) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = path.parent().unwrap_or(Path::new("."));
        durable::make_folder(folder)?;
        durable::replace(path, name.as_bytes())?;
        name.clone_into(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_name_stays_and_what_is_no_name_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let port = || LastName {
            path: Some(dir.path().join(FOLDER).join("press.uid")),
            noted: Arc::default(),
            writing: Arc::default(),
        };
        let names = port();
        assert_eq!(names.last().await, "");
        assert!(names.clone().note("S7-1".to_owned()).await && names.clone().note("S7-2".to_owned()).await);
        assert_eq!(port().last().await, "S7-2");
        fs::write(dir.path().join(FOLDER).join("press.uid"), b"\x00\xff").unwrap();
        assert_eq!(port().last().await, "");
        let nowhere =
            LastName { path: Some("/proc/nobody/press.uid".into()), noted: Arc::default(), writing: Arc::default() };
        assert!(!nowhere.clone().note("S7-1".to_owned()).await && nowhere.note(String::new()).await);
        let socket = LastName { path: None, noted: Arc::default(), writing: Arc::default() };
        assert!(socket.clone().note("S7-1".to_owned()).await);
        assert_eq!(socket.last().await, "");
    }
}
