//! argv -> config -> supervisor -> exit code.
fn main() {}
