//! Random scripts against a plain in-memory queue.
