//! T7: damaged spools: whole pages, headers, tails and single bits; every row comes out exact or is reported.
//!
//! The salvage's own tests get their counts here; one bit in a stored prompt or key is tried on the real daemon, because
//! SQLite's own check sees nothing of it. How soon the real program serves on damaged files is `starts.rs`.

use std::path::Path;

use holdfast::plant::Fault;

use super::unit;
use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::config::{QUICK_PROBE, config};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::chat;
use crate::parts::uplink::Uplink;
use crate::parts::{Chance, until};

pub const CASE: Case = Case {
    id: "T7",
    what: "damaged files, flipped bits in rows and in the log",
    faults: &[Planted::In(Fault::TrustIntegrityCheck)],
    run,
};

/// Requests in the spool of which one is damaged.
const REQUESTS: usize = 12;

fn run(effort: &Effort) -> Outcome {
    let mut chance = Chance(effort.seed | 1);
    let rows = effort.pick(3, 40);
    for n in 0..rows {
        // A body has a hash of its own besides; the key only the row's sum.
        if let Err(what) = flipped_row(n % 2 == 0, &mut chance) {
            return Outcome::Broken(format!("flip {n} of a row: {what}; --seed {}", effort.seed));
        }
    }
    let (files, flips) = (effort.pick(3, 50), effort.pick(12, 200));
    let (starts, slowest) = match super::starts::check(effort.pick(1, 50), &mut chance) {
        Ok(done) => done,
        Err(outcome) => return outcome,
    };
    // Salvage alone, then a start of the spool on each file, which also has to take new requests at once.
    let parts = [
        ("damage::salvage_holds_over_six_kinds_of_damage", files),
        ("damage::salvage_holds_over_flipped_bits_in_the_log", flips),
        ("opened::a_start_holds", files),
    ];
    for (test, count) in parts {
        let environment = [("HOLDFAST_SEED", effort.seed.to_string()), ("HOLDFAST_DAMAGE", count.to_string())];
        let test = format!("spool::salvage::tests::{test}");
        if let Err(outcome) = unit::tests(&test, &environment) {
            return outcome;
        }
    }
    let note = format!(
        "6 kinds x {files} files and {flips} flips in the log, salvaged; the same files, {} flips in the log and {} in \
         rows, started on; {rows} flips in rows under the real program; it started on {starts} damaged files, and the slowest took its first \
         request after {:.1} s",
        4 * files,
        6 * files,
        slowest.as_secs_f64()
    );
    Outcome::held(22 * files + flips + rows + starts, "damages", note)
}

/// Flips one bit of one stored prompt or idempotency key while the daemon is stopped: it must not leave like this, and the others must.
fn flipped_row(of_key: bool, chance: &mut Chance) -> Result<(), String> {
    let (uplink, address) = Uplink::here();
    let config = config(&address, &[QUICK_PROBE], &["[drain]\nstart_jitter = \"0s\""]);
    let mut gateway = Gateway::start(Setup { config, ..Setup::default() });
    gateway.ask("POST", "/holdfast/v1/pause", &[], b"").map_err(|e| e.to_string())?;
    let prompts: Vec<String> = (0..REQUESTS).map(|n| format!("prompt {n} {:016x}", chance.below(u64::MAX))).collect();
    let keys: Vec<String> = (0..REQUESTS).map(|n| format!("key {n} {:016x}", chance.below(u64::MAX))).collect();
    let mut ids = Vec::new();
    for (prompt, key) in prompts.iter().zip(&keys) {
        let headers = [("prefer", "respond-async"), ("idempotency-key", key.as_str())];
        let reply = gateway.ask("POST", "/v1/chat/completions", &headers, &chat(prompt)).map_err(|e| e.to_string())?;
        ids.push(reply.header("x-holdfast-id").to_owned());
    }
    if !gateway.stop() {
        return Err("it did not stop well".to_owned());
    }
    let victim = chance.below(REQUESTS as u64) as usize;
    flip(&gateway.dir().join("data/spool.db"), if of_key { &keys[victim] } else { &prompts[victim] }, chance)?;
    gateway.restart();
    gateway.ask("POST", "/holdfast/v1/resume", &[], b"").map_err(|e| e.to_string())?;
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| *n != victim) {
        let record = gateway.finished(id, 30);
        if record["state"] != "answered" || uplink.sent(&prompts[n]).len() != 1 {
            return Err(format!("a request beside the damaged one: {record}"));
        }
    }
    // Reported in a record, or, where the record cannot be read, in the log.
    let reported = until(20, || {
        let state = gateway.record(&ids[victim])["state"].as_str().unwrap_or("none").to_owned();
        let in_log = gateway.log().to_lowercase().contains("damage");
        (state == "dead" || in_log).then_some(())
    });
    let strangers: Vec<_> =
        uplink.all().into_iter().filter(|sent| !prompts.contains(&sent.user) || !keys.contains(&sent.key)).collect();
    if !strangers.is_empty() {
        return Err(format!("what nobody asked was sent: {strangers:?}"));
    }
    reported.ok_or_else(|| format!("nobody says that it is damaged: {}", gateway.record(&ids[victim])))
}

/// One bit of one letter of this text, wherever it stands in the file.
fn flip(path: &Path, text: &str, chance: &mut Chance) -> Result<(), String> {
    let mut bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(text.len())).filter(|at| bytes[*at..].starts_with(text.as_bytes())).collect();
    if places.is_empty() {
        return Err("the text does not stand in the database: this test tests nothing".to_owned());
    }
    let letter = chance.below(text.len() as u64) as usize;
    for at in places {
        // The lowest bit keeps a letter a letter, so that the JSON stays whole.
        bytes[at + letter] ^= 1;
    }
    std::fs::write(path, bytes).map_err(|e| e.to_string())
}
