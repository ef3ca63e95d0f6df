//! Stub until merged.
pub fn watch() -> tokio::sync::mpsc::Receiver<()> { let (tx, rx) = tokio::sync::mpsc::channel(1); std::mem::forget(tx); rx }
