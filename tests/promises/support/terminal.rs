//! Two serial ports that are wired to each other, for programs that want a real one.
//!
//! Owns the pseudo-terminals and the two threads between them; knows nothing of what travels there.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use rustix::pty::OpenptFlags;

/// A terminal's inner side and the name of its port.
fn terminal() -> (File, PathBuf) {
    let inner = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&inner).unwrap();
    rustix::pty::unlockpt(&inner).unwrap();
    let name = rustix::pty::ptsname(&inner, Vec::new()).unwrap();
    (File::from(inner), PathBuf::from(name.to_str().unwrap()))
}

/// Carries bytes one way as long as the test lives; an end that nobody has opened is tried again.
fn carry(mut from: File, mut to: File) {
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        loop {
            match from.read(&mut bytes) {
                Ok(length) => drop(to.write_all(&bytes[..length])),
                Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
    });
}

/// Both names.
pub fn wired() -> (PathBuf, PathBuf) {
    let ((one, left), (other, right)) = (terminal(), terminal());
    carry(one.try_clone().unwrap(), other.try_clone().unwrap());
    carry(other, one);
    (left, right)
}
