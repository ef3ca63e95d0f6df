//! The dialect of everything with a compiler: frames with a checksum, point to point or on an RS-485 bus.
//!
//! Owns the translation between frames and the core; the rules are the core's.

use super::Link;
use super::port::Line;

/// Speaks frames on one line until it is gone.
pub(super) async fn serve(link: Link, mut line: Line) {
    let _ = (link, line.read(&mut [0; 64]).await);
}
