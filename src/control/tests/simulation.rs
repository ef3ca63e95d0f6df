//! Random days: outages, floods, kills and repairs from a seed, then good hours in which everything must end.
//!
//! `HOLDFAST_SEED=n` replays one seed; `HOLDFAST_SIMULATIONS=k` runs k of them, from that one or from 0.

use super::world::{Mode, World};
use super::*;

/// Seeds of an ordinary run; the long one takes 500.
const SEEDS: u64 = 20;
const HOUR_MS: u64 = 3_600_000;
const BAD_HOURS: u64 = 15;
const GOOD_HOURS: u64 = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_request_ends_once_whatever_the_network_does() {
    let first = number("HOLDFAST_SEED");
    let count = number("HOLDFAST_SIMULATIONS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let (mut sent, mut answered) = (0, 0);
    for n in 0..count {
        let seed = first.unwrap_or(0).wrapping_add(n);
        let result = std::panic::catch_unwind(|| run(seed));
        let Ok(counts) = result else { panic!("replay with HOLDFAST_SEED={seed}") };
        sent += counts.0;
        answered += counts.1;
    }
    assert!(sent > 200 * count && answered > 500 * count, "{sent} sends, {answered} answers: too quiet");
}

fn run(seed: u64) -> (u64, u64) {
    let mut world = World::new(random_settings(seed), seed);
    let uplinks = world_uplinks(seed);
    let end_ms = BAD_HOURS * HOUR_MS;
    for uplink in 0..uplinks {
        let mut at_ms = 0;
        while at_ms < end_ms {
            let mode = Mode::ALL[world.chance.up_to(Mode::ALL.len() as u64 - 1) as usize];
            // Bad times and good ones in turn, from a second to twenty minutes.
            world.mode_at(at_ms, uplink, mode);
            at_ms += stretch(&mut world);
            world.mode_at(at_ms, uplink, Mode::Good);
            at_ms += stretch(&mut world);
        }
        world.mode_at(end_ms, uplink, Mode::Good);
    }
    for _ in 0..400 {
        let at_ms = world.chance.up_to(end_ms);
        // Half of them come in small crowds.
        for n in 0..=world.chance.up_to(1) * world.chance.up_to(9) {
            world.ask_at(at_ms + n);
        }
        let at_ms = world.chance.up_to(end_ms);
        world.store_at(at_ms);
    }
    operator(&mut world, end_ms);
    for _ in 0..world.chance.up_to(12) {
        let at_ms = world.chance.up_to(end_ms);
        world.kill_at(at_ms);
    }
    world.run_until(end_ms);
    // Callers go on asking: their answers pay for what waits to be sent a second time.
    for n in 0..GOOD_HOURS * 3_600 {
        world.ask_at(end_ms + n * 1_000);
    }
    world.run_until(end_ms + GOOD_HOURS * HOUR_MS + HOUR_MS);
    world.assert_settled();
    (world.sends(), world.answered())
}

fn stretch(world: &mut World) -> u64 {
    let most = [1_000, 10_000, 60_000, 1_200_000][world.chance.up_to(3) as usize];
    1 + world.chance.up_to(most)
}

fn operator(world: &mut World, end_ms: u64) {
    for _ in 0..10 {
        let at_ms = world.chance.up_to(end_ms);
        world.tell_at(at_ms, Event::Paused(true));
        let pause_ms = world.chance.up_to(60_000);
        world.tell_at(at_ms + pause_ms, Event::Paused(false));
        let at_ms = world.chance.up_to(end_ms);
        world.tell_at(at_ms, Event::DrainNow);
        for _ in 0..5 {
            let at_ms = world.chance.up_to(end_ms);
            world.tell_at(at_ms, Event::NetworkChanged);
        }
    }
}

fn world_uplinks(seed: u64) -> usize {
    1 + (seed % 3) as usize
}

fn random_settings(seed: u64) -> Settings {
    let mut chance = super::super::retry::Chance::new(!seed);
    let mut settings = settings(world_uplinks(seed) as u32);
    for uplink in &mut settings.uplinks {
        uplink.max_in_flight = [1, 2, 8, 32][chance.up_to(3) as usize];
        uplink.probe.interval_ms = [2_000, 10_000, 30_000][chance.up_to(2) as usize];
        let bounds = [1, 4, u32::MAX];
        let key = |_| KeySettings { max_in_flight: bounds[chance.up_to(2) as usize] };
        uplink.keys = (0..seed % 4).map(key).collect();
        uplink.probe.rise = 1 + chance.up_to(1) as u32;
        uplink.weight = 1 + chance.up_to(3) as u32;
    }
    settings.strategy = [
        Strategy::Priority,
        Strategy::RoundRobin,
        Strategy::Weighted,
        Strategy::LeastLatency,
        Strategy::LeastConnections,
    ][chance.up_to(4) as usize];
    settings.hold_unknown = chance.up_to(3) == 0;
    settings.drain.max_in_flight = 1 + chance.up_to(7) as u32;
    settings.drain.start_delay_ms = chance.up_to(10_000);
    settings.seed = seed;
    settings
}
