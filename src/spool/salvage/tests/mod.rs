//! Salvage on files that SQLite made and that were damaged on purpose.

mod damage;
mod garbage;
mod offline;
mod opened;
mod reading;
mod sample;
