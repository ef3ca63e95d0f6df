//! Children and folders of a test.

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use holdfast::clock;

/// How often a child is asked whether it has ended.
const STEP: Duration = Duration::from_millis(1);

/// Waits until `end`; what still runs then is killed, and `None` says so.
pub fn wait(mut child: Child, end: Instant) -> Option<ExitStatus> {
    wait_until(&mut child, end)
}

/// The same for a child that is still of use, and a length of time.
pub fn wait_for(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    wait_until(child, clock::now() + time)
}

fn wait_until(child: &mut Child, end: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if clock::now() < end => pause(STEP),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Lets some time pass: between two looks at a child, or before a kill at a time that chance has chosen.
#[expect(clippy::disallowed_methods, reason = "a child's end and a time to kill are not events of ours")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Copies a folder with everything below it.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
