//! The configuration that most tests want: one uplink, no local model, short waits, nothing between a test and its fault.
//!
//! A test says only what it needs otherwise; a value of a section it writes itself stands there once.

/// A probe ten times a second, so that an outage is known and over at once.
pub const QUICK_PROBE: &str = "probe = { interval = \"100ms\", timeout = \"2s\", fall = 2, rise = 1 }";
/// A breaker that closes before a test would wait for it.
pub const QUICK_BREAKER: &str = "breaker = { failures = 5, open_for = \"300ms\" }";
/// The backlog leaves at once, one after the other, and comes back soon.
pub const QUICK_DRAIN: &str =
    "[drain]\nmax_in_flight = 1\nstart_jitter = \"0s\"\n[retry]\nbase = \"50ms\"\nmax = \"300ms\"";

/// With the uplink at this address; `uplink` are further lines of its section, `sections` further sections.
pub fn config(address: &str, uplink: &[&str], sections: &[&str]) -> String {
    format!(
        r#"
[gateway]
data_dir = "@DIR@/data"
[http]
socket = "@DIR@/hf.sock"
[[uplink]]
name = "sim"
base_url = "{address}"
{}
[local]
base_url = ""
[cache]
ttl = "0s"
[limits]
rate = 0
{}
"#,
        uplink.join("\n"),
        sections.join("\n")
    )
}
