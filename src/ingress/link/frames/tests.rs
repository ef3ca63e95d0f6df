//! The rules W1 to W13 of one line, by their numbers, with explicit time.
