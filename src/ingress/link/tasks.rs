//! Canned prompts as devices call them: by number, with arguments in order.
//!
//! Owns the translation between the room of tasks and the core's seam; nothing is decided here.

use std::sync::Arc;

use holdfast_wire::Code;

use super::core::tasks::{Filled, Piece, Reading, Tasks};
use crate::task::{self, Args, Book, Picture};

impl Tasks for Arc<Book> {
    fn fill(&self, id: u16, args: &[String], pictures: &[&'static str]) -> Result<Filled, (Code, String)> {
        let task = self.get(id).ok_or_else(|| (Code::UnknownTask, "no such task here".to_owned()))?;
        let pictures: Vec<Picture> = pictures.iter().filter_map(|mime| Picture::of_mime(mime)).collect();
        let filled = task.fill(Args::Positional(args), &pictures).map_err(|fault| {
            // A fault names the argument and never repeats its value.
            (Code::BadArguments, fault.message)
        })?;
        Ok(Filled {
            endpoint: filled.endpoint,
            model: filled.model,
            pieces: filled.pieces.into_iter().map(piece).collect(),
            policy: filled.policy,
            max_answer: filled.max_answer,
        })
    }

    fn read(&self, id: u16, answer: &str) -> Option<Reading> {
        let task::Reading { fits, code, value, text, cut, .. } = self.get(id)?.read(answer);
        Some(Reading { fits, code, value: value as f32, text, cut })
    }
}

fn piece(piece: task::Piece) -> Piece {
    match piece {
        task::Piece::Json(bytes) => Piece::Json(bytes),
        task::Piece::Picture(index) => Piece::Picture(index),
    }
}
