//! What a simulated device prints: one line for each message, without the bytes of pictures.
//!
//! Owns the words; a closed standard output is nobody's concern.

use std::fmt::{Arguments, Debug};
use std::io::Write;

use holdfast_wire::frame::FRAME_MAX;
use holdfast_wire::{Deframer, Message};

/// One line on standard output.
pub(super) fn line(words: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{words}");
}

/// Prints what a frame says, with an arrow; `sent` from the device.
pub(super) fn frame(frame: &[u8], sent: bool) {
    let arrow = if sent { "->" } else { "<-" };
    let mut buffer = [0; FRAME_MAX + 20];
    let mut deframer = Deframer::new(&mut buffer);
    for byte in frame {
        match deframer.push(*byte) {
            Some(Ok(frame)) => {
                let again = if frame.header.repeat { " (again)" } else { "" };
                match Message::read(frame.header.kind, frame.payload) {
                    Ok(message) => line(format_args!("{arrow} {}{again}", words(&message))),
                    Err(_) => line(format_args!(
                        "{arrow} message 0x{:02X} that this simulator does not know",
                        frame.header.kind
                    )),
                }
            }
            Some(Err(error)) => line(format_args!("{arrow} damaged: {error:?}")),
            None => {}
        }
    }
}

fn words(message: &Message<'_>) -> String {
    match message {
        Message::Hello(m) => format!("Hello {} boot {}", String::from_utf8_lossy(m.uid), m.boot_id),
        Message::HelloAck(m) => {
            let uplink = ["offline", "degraded", "online"].get(usize::from(m.uplink)).unwrap_or(&"?");
            format!("HelloAck {}, uplink {uplink}, chunk {} credit {}", m.gw, m.chunk, m.credit)
        }
        Message::Submit(m) => format!("Submit {:x}, {} pictures", m.key, m.blobs().len()),
        Message::SubmitAck(m) => match (m.outcome, m.need) {
            (1, Some((_, off))) => format!("SubmitAck {:x}: the picture is wanted from byte {off}", m.key),
            (0, _) => format!("SubmitAck {:x}: on disk as request {}, {} before it", m.key, m.req, m.queue_pos),
            (2, _) => format!("SubmitAck {:x}: already on disk as request {}", m.key, m.req),
            _ => format!("SubmitAck {:x}: already finished", m.key),
        },
        Message::Chunk(m) => format!("Chunk {}..{}", m.off, m.off as usize + m.data.len()),
        Message::ChunkAck(m) => format!("ChunkAck up to {}, credit {}", m.next, m.credit),
        Message::Result(m) => {
            let text = String::from_utf8_lossy(m.text);
            format!(
                "Result {:x} status {} code {} value {} [{}/{}] {text}",
                m.key, m.status, m.code, m.value, m.off, m.total
            )
        }
        Message::Nack(m) => format!("Nack {} for {:x}, again in {} ms: {}", m.code, m.key, m.retry_ms, m.detail),
        other => plain(other),
    }
}

fn plain(message: &dyn Debug) -> String {
    format!("{message:?}")
}
