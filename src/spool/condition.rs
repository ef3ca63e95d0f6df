//! How the storage stands, in one word, and how that word changes.
//!
//! Owns the rule that only a real write proves a disk well again; never writes itself.

use std::path::Path;

use rustix::fs::StatVfsMountFlags;

use super::{SpoolError, files};

/// What the storage can do at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// It takes new requests.
    #[default]
    Fine,
    /// No room for new requests; outcomes of older ones still find some.
    Full,
    /// The file system is mounted read-only, as Linux does after errors.
    ReadOnly,
    /// Writes fail otherwise.
    Failing,
}

impl Condition {
    /// A stable word for logs, metrics and health.
    pub fn kind(self) -> &'static str {
        match self {
            Condition::Fine => "fine",
            Condition::Full => "full",
            Condition::ReadOnly => "read_only",
            Condition::Failing => "failing",
        }
    }

    /// After a transaction: what a failure says, and that success ends every trouble but a lack of room, which a
    /// small write says nothing about.
    pub(super) fn after(self, fate: &Result<(), SpoolError>, data_dir: &Path) -> Condition {
        match fate {
            Ok(()) if self == Condition::Full => Condition::Full,
            Ok(()) => Condition::Fine,
            Err(SpoolError::DiskFull) => Condition::Full,
            Err(SpoolError::Closed) => self,
            Err(_) if is_read_only(data_dir) => Condition::ReadOnly,
            Err(_) => Condition::Failing,
        }
    }
}

/// A mount that says so itself, or a file system that gave up writing after errors and does not: newer kernels leave the
/// mount as it was.
fn is_read_only(data_dir: &Path) -> bool {
    let says_so = rustix::fs::statvfs(data_dir).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY));
    let lock = || files::private().create(true).truncate(false).open(files::lock(data_dir));
    says_so || lock().is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_write_does_not_make_room() {
        let dir = Path::new("/");
        assert_eq!(Condition::Full.after(&Ok(()), dir), Condition::Full);
        assert_eq!(Condition::Failing.after(&Ok(()), dir), Condition::Fine);
        assert_eq!(Condition::Fine.after(&Err(SpoolError::DiskFull), dir), Condition::Full);
    }
}
