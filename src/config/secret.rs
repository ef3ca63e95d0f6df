//! Keys of uplinks: where they are kept, and the one type that carries one in memory.
//!
//! A key is never part of the settings, of an error or of a log line.

use std::fmt;
use std::path::{Path, PathBuf};

/// No key or token is longer than this; a larger file is something else.
const KEY_BYTES_MAX: usize = 16 * 1024;

/// A secret text. `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for the one header that carries it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a key is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// An environment variable's name.
    Env(String),
    /// A file; its text without surrounding white space is the key.
    File(PathBuf),
    /// A systemd credential's name, read from `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

impl KeySource {
    /// The same in few words, for lists: `env NAME`, `file PATH`, `credential NAME`.
    pub fn label(&self) -> String {
        match self {
            KeySource::Env(name) => format!("env {name}"),
            KeySource::File(path) => format!("file {}", path.display()),
            KeySource::Credential(name) => format!("credential {name}"),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Env(name) => write!(f, "environment variable {name}"),
            KeySource::File(path) => write!(f, "file {}", path.display()),
            KeySource::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

/// Reads a key now. The error says which source failed and what to do, never what was read.
pub fn read_key(source: &KeySource) -> Result<Secret, String> {
    match source {
        KeySource::Env(name) => match std::env::var(name) {
            Ok(text) => checked(source, text.as_bytes()),
            Err(_) => Err(format!("{source} is not set; set it in the service's environment")),
        },
        KeySource::File(path) => read_file(source, path),
        KeySource::Credential(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
            Some(folder) => read_file(source, &Path::new(&folder).join(name)),
            None => {
                Err(format!("{source}: $CREDENTIALS_DIRECTORY is not set; add LoadCredential={name}:… to the unit"))
            }
        },
    }
}

fn read_file(source: &KeySource, path: &Path) -> Result<Secret, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{source} cannot be read: {error}"))?;
    checked(source, &bytes)
}

fn checked(source: &KeySource, bytes: &[u8]) -> Result<Secret, String> {
    if bytes.len() > KEY_BYTES_MAX {
        return Err(format!("{source} holds more than {KEY_BYTES_MAX} bytes; that is no key"));
    }
    let text = std::str::from_utf8(bytes).unwrap_or("\0").trim();
    if text.is_empty() {
        return Err(format!("{source} is empty; put the key there"));
    }
    // Anything else could not travel in a header and would fail later with a less helpful word.
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{source} holds characters that no key has; one line of plain ASCII is expected"));
    }
    if text.starts_with(['"', '\'']) {
        return Err(format!("{source} holds a key in quotes; leave them out"));
    }
    if is_assignment(text) {
        return Err(format!("{source} holds NAME=key; leave out what stands before the key"));
    }
    Ok(Secret::new(text))
}

/// Whether it is a line for a service's environment, `HOLYSHEEP_API_KEY=…`. Keys may end with `=`, and are no upper case words.
fn is_assignment(text: &str) -> bool {
    let is_name = |name: &str| name.ends_with("KEY") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    text.split_once('=').is_some_and(|(name, value)| is_name(name) && !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("sk-123");
        assert_eq!(format!("{secret:?} {secret}"), "*** ***");
        assert_eq!(secret.reveal(), "sk-123");
    }

    #[test]
    fn a_key_file_is_trimmed_and_its_faults_do_not_quote_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let source = KeySource::File(path.clone());
        assert!(read_key(&source).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, " sk-123\n").unwrap();
        assert_eq!(read_key(&source).unwrap().reveal(), "sk-123");
        std::fs::write(&path, "\n").unwrap();
        assert!(read_key(&source).unwrap_err().contains("is empty"));
        std::fs::write(&path, "sk-1\nsk-2\n").unwrap();
        let error = read_key(&source).unwrap_err();
        assert!(!error.contains("sk-1") && error.contains("one line"), "{error}");
        for (text, word) in [("\"sk-1\"\n", "quotes"), ("'sk-1'", "quotes"), ("HOLYSHEEP_API_KEY=sk-1\n", "NAME=key")] {
            std::fs::write(&path, text).unwrap();
            let error = read_key(&source).unwrap_err();
            assert!(!error.contains("sk-1") && error.contains(word), "{error}");
        }
        std::fs::write(&path, "c2stMQ==").unwrap();
        assert_eq!(read_key(&source).unwrap().reveal(), "c2stMQ==");
    }

    #[test]
    fn a_missing_variable_says_so() {
        let source = KeySource::Env("HF_TEST_NO_SUCH_KEY".to_owned());
        assert!(read_key(&source).unwrap_err().contains("HF_TEST_NO_SUCH_KEY is not set"));
    }
}
