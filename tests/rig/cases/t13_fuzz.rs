//! T13: any bytes at all into everything that reads what others wrote. The short form tries the corpora and changes of
//! them; the long form is libFuzzer's, one minute a target.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast::plant::Fault;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::Chance;
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::chat;

#[path = "../../fuzz/targets.rs"]
mod targets;

pub const CASE: Case = Case {
    id: "T13",
    what: "fuzzing of everything that reads foreign bytes",
    faults: &[Planted::In(Fault::OffByOneInALength)],
    run,
};

/// Seconds of libFuzzer for each target in the long form.
const SECONDS: &str = "60";
/// Inputs beside the corpus in the short form, for each target.
const CHANGED: u64 = 2_000;

thread_local! {
    /// Where the last panic stood.
    static WHERE: RefCell<String> = const { RefCell::new(String::new()) };
}

fn run(effort: &Effort) -> Outcome {
    std::panic::set_hook(Box::new(|info| WHERE.with(|place| *place.borrow_mut() = info.to_string())));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let mut tried = 0;
    // A spool as a kill leaves it: the log holds what the database does not.
    let spool = match sample_spool(&folder) {
        Ok(spool) => spool,
        Err(what) => return Outcome::Broken(format!("salvage: {what}")),
    };
    for (name, target) in targets::ALL {
        let more = if *name == "salvage" { vec![spool.clone()] } else { Vec::new() };
        match short(&folder.join("corpus").join(name), more, *target, effort.seed) {
            Ok(count) => tried += count,
            Err(what) => return Outcome::Broken(format!("{name}: {what}; --seed {}", effort.seed)),
        }
    }
    let _ = std::panic::take_hook();
    let note = format!("{} targets", targets::ALL.len());
    if !effort.long {
        return Outcome::held(tried, "inputs", note);
    }
    let output = match Command::new(folder.join("run")).arg(SECONDS).output() {
        Ok(output) => output,
        Err(error) => return Outcome::Missing(format!("tests/fuzz/run: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.contains("BROKEN") {
        return Outcome::Broken(said);
    }
    if !output.status.success() {
        return Outcome::Missing(format!("tests/fuzz/run: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let runs = said.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
    Outcome::held(tried + runs, "inputs", format!("{note}, {SECONDS} s of libFuzzer each"))
}

/// Every file of a corpus, then changed and crossed ones.
fn short(corpus: &Path, more: Vec<Vec<u8>>, target: fn(&[u8]), seed: u64) -> Result<u64, String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus)
        .map_err(|e| format!("{}: {e}", corpus.display()))?
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut known: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, bytes) in files.iter().zip(&known) {
        held(target, bytes).map_err(|what| format!("{}: {what}", path.display()))?;
    }
    known.extend(more);
    let mut chance = Chance(seed | 1);
    for n in 0..CHANGED {
        let input = changed(&known, &mut chance);
        held(target, &input).map_err(|what| format!("changed input {n}: {what}"))?;
    }
    Ok(known.len() as u64 + CHANGED)
}

/// What the daemon leaves behind with some requests in it, which a salvage has to find all of; also libFuzzer's seed.
fn sample_spool(folder: &Path) -> Result<Vec<u8>, String> {
    const REQUESTS: usize = 6;
    let config = "[gateway]\ndata_dir = \"@DIR@/data\"\n[http]\nsocket = \"@DIR@/hf.sock\"\n[[uplink]]\nname = \"no\"\n\
                  base_url = \"http://127.0.0.1:9/v1\"\n[local]\nbase_url = \"\"\n[limits]\nrate = 0\n";
    let mut gateway = Gateway::start(Setup { config: config.to_owned(), ..Setup::default() });
    for n in 0..REQUESTS {
        gateway.store(&chat(&format!("{n} {}", "long ".repeat(n * 300))))?;
    }
    gateway.kill();
    let file = |name: &str| std::fs::read(gateway.dir().join("data").join(name)).unwrap_or_default();
    let (db, wal) = (file("spool.db"), file("spool.db-wal"));
    let mut input = vec![u8::try_from(db.len() / 1024).map_err(|_| "a new spool has more than 255 pages")?];
    input.extend([db.as_slice(), wal.as_slice()].concat());
    let seeds = folder.join("target/corpus/salvage");
    if std::fs::create_dir_all(&seeds).is_ok() {
        let _ = std::fs::write(seeds.join("a-killed-daemon"), &input);
    }
    let found = catch_unwind(AssertUnwindSafe(|| holdfast::spool::fuzz_salvage(db, wal)));
    match found {
        Ok(REQUESTS) => Ok(input),
        Ok(found) => Err(format!("{found} of {REQUESTS} requests come out of a sound spool")),
        Err(_) => Err(WHERE.with(|place| place.borrow().clone())),
    }
}

fn held(target: fn(&[u8]), bytes: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| target(bytes))).map_err(|_| WHERE.with(|place| place.borrow().clone()))
}

/// A known input with a few bytes flipped, cut, doubled or taken from another.
fn changed(known: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut pick = || &known[chance.below(known.len() as u64) as usize];
    let (mut bytes, other) = (pick().clone(), pick().clone());
    for _ in 0..=chance.below(4) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = chance.below(bytes.len() as u64) as usize;
        match chance.below(6) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = [0, 0xff, b'\n', b'"', b'{', b':', b'=', b'\r'][chance.below(8) as usize],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + chance.below(8) as usize + 1).min(bytes.len()))),
            4 => {
                let double = bytes[at..(at + chance.below(32) as usize).min(bytes.len())].to_vec();
                bytes.splice(at..at, double);
            }
            _ => {
                let from = chance.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}
