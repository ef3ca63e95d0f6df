//! One file per subcommand; a thin client of the socket, never of the database.

pub mod demo;
pub mod simulate;
