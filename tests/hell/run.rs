//! One run: a device with its requests, the cable, the daemon, kills on both sides; and what was seen from outside.
//!
//! Owns the story and its judgement: acknowledged means one result at the device and one send at the uplink, but for
//! the one that a kill in flight allows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use holdfast::cli::simulate::{Faults, Simulator};
use holdfast::clock;

use super::cable::Cable;
use super::chance::Chance;
use super::firmware::{Firmware, Wrong, jpeg, wants_result};
use super::support::{Bench, Settings, until};

/// A request that left as its process was killed is noted by the uplink a moment later.
const SLACK_MS: u64 = 200;

/// How long a commit waits in a run with power cuts: many times what an acknowledgement takes to the device.
const SLOW_MS: u64 = 100;

/// What one run does.
#[derive(Default)]
pub struct Plan {
    pub requests: usize,
    /// How many of them have a picture.
    pub pictures: usize,
    /// Kills of the daemon, and about as many power cuts of the device.
    pub kills: usize,
    /// Percent of the frames that meet something.
    pub bad: u64,
    pub seed: u64,
    pub give_up_s: u64,
    /// Each commit is slow, and a kill right after an acknowledgement takes the device along.
    pub power_cuts: bool,
    /// Every request only has to arrive.
    pub quiet: bool,
}

/// The five mistakes of which each made the simulation of the rules fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// The gateway acknowledges before the commit.
    AckBeforeCommit,
    /// The gateway makes a new request of each Submit.
    NoUniqueKey,
    /// The device hands over each result that comes.
    ResultNotDeduplicated,
    /// The device gives its request up with the acknowledgement.
    DeviceForgetsAtTheAck,
    /// The gateway acknowledges before the commit, and nobody waits for a result.
    AckBeforeCommitWithoutResult,
}

impl Mistake {
    #[allow(dead_code, reason = "planted only with the feature")]
    pub const PLAIN: [Mistake; 3] =
        [Mistake::NoUniqueKey, Mistake::ResultNotDeduplicated, Mistake::DeviceForgetsAtTheAck];

    /// Seen only when the power goes between acknowledgement and commit.
    #[allow(dead_code, reason = "planted only with the feature")]
    pub const NARROW: [Mistake; 2] = [Mistake::AckBeforeCommit, Mistake::AckBeforeCommitWithoutResult];

    /// The line on which it has to be seen.
    #[allow(dead_code, reason = "planted only with the feature")]
    pub fn plan(self, seed: u64) -> Plan {
        let power_cuts = Mistake::NARROW.contains(&self);
        let quiet = self == Mistake::AckBeforeCommitWithoutResult;
        let (requests, kills) = if power_cuts { (12, 3) } else { (40, 6) };
        Plan { requests, pictures: 2, kills, bad: 25, seed, give_up_s: 60, power_cuts, quiet }
    }

    /// What the daemon is started with.
    fn plant(self) -> Option<&'static str> {
        match self {
            Mistake::AckBeforeCommit | Mistake::AckBeforeCommitWithoutResult => Some("link-ack-before-commit"),
            Mistake::NoUniqueKey => Some("link-no-unique-key"),
            Mistake::ResultNotDeduplicated => Some("link-result-not-deduplicated"),
            Mistake::DeviceForgetsAtTheAck => None,
        }
    }

    /// What the device does wrong.
    fn wrong(self) -> Option<Wrong> {
        match self {
            Mistake::DeviceForgetsAtTheAck => Some(Wrong::ForgetsAtTheAck),
            // A gateway that pushes a result again and a device that believes it make the mistake together.
            Mistake::ResultNotDeduplicated => Some(Wrong::HandsOverEach),
            _ => None,
        }
    }
}

/// What came of it.
pub struct Seen {
    firmware: Firmware,
    /// When each prompt reached the uplink, in ms of the run.
    sends: BTreeMap<String, Vec<u64>>,
    kills: Vec<u64>,
    took_s: f32,
    gave_up: bool,
    bytes: u64,
}

impl Seen {
    pub fn summary(&self) -> String {
        let twice = self.sends.values().filter(|sends| sends.len() > 1).count();
        let odd = self.firmware.results.values().flatten().filter(|status| **status != 0).count();
        format!(
            "{} acknowledged, {} results, {} sent twice over {} kills, {odd} unsure, {} bytes up, {:.1} s",
            self.firmware.acked.len(),
            self.firmware.results.len(),
            twice,
            self.kills.len(),
            self.bytes,
            self.took_s
        )
    }

    /// Whether it came to its end in time.
    #[allow(dead_code, reason = "asked only of planted mistakes")]
    pub fn is_finished(&self) -> bool {
        !self.gave_up
    }

    /// The promise, or what broke it.
    pub fn check(&self) -> Result<(), String> {
        let device = &self.firmware;
        for (key, prompt) in device.prompts() {
            let sends = self.sends.get(prompt).map_or(&[][..], Vec::as_slice);
            self.check_sends(prompt, sends)?;
            let acked = device.acked.contains(key) || device.results.contains_key(key);
            if acked && !wants_result(*key) && sends.is_empty() {
                return Err(format!("{prompt} was acknowledged and never reached the uplink"));
            }
            match device.results.get(key).map_or(&[][..], Vec::as_slice) {
                [] if acked && wants_result(*key) => {
                    return Err(format!("{prompt} was acknowledged and has no result"));
                }
                // Cut off twice in flight: it says so.
                [status] if *status != 0 && sends.len() < 2 => {
                    return Err(format!("{prompt} ended with status {status} after {} sends", sends.len()));
                }
                [] | [_] => {}
                more => return Err(format!("{prompt} was handed over {} times", more.len())),
            }
        }
        let wrong = device.torn.first().or(device.refused.first());
        if let Some(what) = wrong {
            return Err(what.clone());
        }
        if self.gave_up { Err(format!("not finished: {} are open", device.memory.kept.len())) } else { Ok(()) }
    }

    /// Once; or twice, with a kill between.
    fn check_sends(&self, prompt: &str, sends: &[u64]) -> Result<(), String> {
        match sends {
            [] | [_] => Ok(()),
            [first, second] if self.kills.iter().any(|kill| *first <= kill + SLACK_MS && kill <= second) => Ok(()),
            more => Err(format!("{prompt} was sent {} times, at {more:?} ms; kills at {:?}", more.len(), self.kills)),
        }
    }
}

fn requests(plan: &Plan, chance: &mut Chance) -> Vec<(String, Vec<u8>)> {
    let every = plan.requests / plan.pictures.max(1);
    let mut requests = Vec::new();
    for n in 1..=plan.requests {
        let length = 1_000 + chance.below(15_000) as usize;
        let picture = if n.is_multiple_of(every) { jpeg(length, chance) } else { Vec::new() };
        requests.push((format!("hell {} request {n:05}.", plan.seed), picture));
    }
    requests
}

fn sends(uplink: &Simulator, since_ms: u64) -> BTreeMap<String, Vec<u64>> {
    let mut sends: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for entry in uplink.log() {
        sends.entry(entry.user).or_default().push(entry.at_ms.saturating_sub(since_ms));
    }
    sends
}

/// The library that makes each commit slow; built once, since a daemon may be using it.
fn slow_commits() -> Vec<(&'static str, String)> {
    static BUILT: OnceLock<String> = OnceLock::new();
    let library = BUILT.get_or_init(build_slow).clone();
    vec![("LD_PRELOAD", library), ("RIG_SLOW_MS", SLOW_MS.to_string())]
}

fn build_slow() -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rig/shims/slow.c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("slow-{}.so", std::process::id()));
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl");
    let output = compile.output().expect("cc (Debian: apt-get install gcc libc6-dev)");
    assert!(output.status.success(), "slow.c: {}", String::from_utf8_lossy(&output.stderr));
    library.to_str().unwrap().to_owned()
}

/// A daemon with one link on a terminal of this name in its folder.
pub async fn bench(environment: Vec<(&'static str, String)>) -> Bench {
    let extra = "[[link]]\nname = \"line\"\ndevice = \"@DIR@/tty\"\nbaud = 921600\nprotocol = \"frames\"\n";
    let settings = Settings { extra: extra.to_owned(), environment, drain_in_flight: 4, ..Settings::default() };
    Bench::with(settings).await
}

/// Runs it to the end, or until it has to be given up.
pub async fn run(plan: &Plan, mistake: Option<Mistake>) -> Seen {
    let mut chance = Chance::new(plan.seed);
    let mut environment = if plan.power_cuts { slow_commits() } else { Vec::new() };
    environment.extend(mistake.and_then(Mistake::plant).map(|name| ("HOLDFAST_PLANT", name.to_owned())));
    let mut bench = bench(environment).await;
    bench.uplink.set_faults(Faults { delay_ms: 20, ..Faults::default() }).await;
    let mut cable = Cable::new(&bench.daemon.folder().join("tty"), plan.seed, plan.bad, 0);
    let requests = requests(plan, &mut chance);
    let mut device = Firmware::new(b"hell-dev", 5, mistake.and_then(Mistake::wrong), plan.quiet, requests);
    let (started, offset_ms) = (clock::now(), bench.uplink.age_ms());
    let (mut kills, mut next_reboot) = (Vec::new(), 2_500);
    // A power cut is to meet the first acknowledgement already.
    let mut next_kill = if plan.power_cuts { 0 } else { 1_500 };
    let (mut gave_up, mut acked_before) = (false, 0);
    loop {
        let now_ms = started.elapsed().as_millis() as u64;
        if device.is_done() && kills.len() >= plan.kills.min(1) {
            break;
        }
        if now_ms > plan.give_up_s * 1_000 {
            gave_up = true;
            break;
        }
        let bytes = cable.carry(now_ms);
        device.step(&bytes, now_ms, |frame| cable.send(frame, now_ms));
        // Right after an acknowledgement: what was promised by then must be there.
        let (acked, before) = (device.acked.len(), std::mem::replace(&mut acked_before, device.acked.len()));
        let aimed = acked > before || (!plan.power_cuts && now_ms >= next_kill + 1_000);
        if kills.len() < plan.kills && now_ms >= next_kill && aimed {
            bench.daemon.kill().await;
            kills.push(started.elapsed().as_millis() as u64);
            bench.daemon.restart_unready();
            if plan.power_cuts {
                device.reboot(now_ms);
                cable.lose();
            }
            next_kill = now_ms + 500 + chance.below(2_000);
        }
        if kills.len() < plan.kills && now_ms >= next_reboot {
            device.reboot(now_ms);
            cable.lose();
            next_reboot = now_ms + 1_000 + chance.below(4_000);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took_s = started.elapsed().as_secs_f32();
    // What only had to arrive may still be on its way up.
    until("the backlog to drain", 60, || async {
        let status = bench.daemon.try_status().await?;
        (status["backlog"]["count"] == 0).then_some(())
    })
    .await;
    let sends = sends(&bench.uplink, offset_ms);
    Seen { firmware: device, sends, kills, took_s, gave_up, bytes: cable.sent() }
}
