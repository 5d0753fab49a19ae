//! The one binary: parse, init, run, drain.
fn main() {}
