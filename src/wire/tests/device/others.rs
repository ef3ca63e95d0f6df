//! The clients in other languages: the same bytes as the Rust state machine, turn for turn, on the same bad lines.

use std::path::Path;
use std::process::Command;

use holdfast_wire::message::{ChunkAck, HelloAck, Message, SubmitAck};

use super::machine::{Machine, Rust, Twins};
use super::piped::{Piped, compile};
use super::words::from_gateway;
use super::{run, words};

/// Bad lines for each language; the Rust state machine meets more of them.
const SEEDS_C: u64 = 20;
/// A slower one, of which each line takes some seconds.
const SEEDS_PYTHON: u64 = 2;

/// Pieces of every length around the runs of 254 bytes that byte stuffing counts, with and without zeros.
fn stuffing(mut machine: impl Machine) {
    let mut now_ms = 0;
    let lengths = (1..12).chain(225..260).chain(480..515).chain(735..770);
    for (key, length) in (1..).zip(lengths) {
        let byte = |n: usize| match key % 3 {
            0 => 0,
            1 => (n % 254 + 1) as u8,
            _ => (n % 256) as u8,
        };
        let picture: Vec<u8> = (0..length).map(byte).collect();
        machine.keep(key, true, &picture);
        machine.start(1, now_ms);
        machine.submit(key, true, now_ms);
        let ack = HelloAck { proto: 1, gw_boot: 1, chunk: 960, credit: 3840, ..HelloAck::default() };
        machine.turn(&from_gateway(&Message::HelloAck(ack)), now_ms);
        let (blob, need) = (key as u32, Some((key as u32, 0)));
        let ack = SubmitAck { key, outcome: 1, need, ..SubmitAck::default() };
        let sent = machine.turn(&from_gateway(&Message::SubmitAck(ack)), now_ms).sent;
        assert!(sent.iter().any(|frame| frame.len() > length), "no piece of {length} bytes");
        let ack = ChunkAck { blob, next: length as u32, credit: 3840 };
        machine.turn(&from_gateway(&Message::ChunkAck(ack)), now_ms);
        machine.forget(key);
        now_ms += 100_000;
    }
}

/// As good as the Rust one: whatever that one is held to, this one is.
fn holds(seeds: u64, start: impl Fn() -> Piped) {
    stuffing(Twins(Rust::new(), start()));
    words::all(|| Twins(Rust::new(), start()));
    for seed in 1..=seeds {
        let badness = [25, 40, 0, 10][(seed % 4) as usize];
        if let Err(what) = run(Twins(Rust::new(), start()), seed, None, badness) {
            panic!("{what}: replay with HOLDFAST_SEED={seed}");
        }
    }
}

#[test]
fn the_c_header_says_the_same_bytes() {
    let Some(program) = compile("harness") else { return };
    let start = || Piped::start(&mut Command::new(&program));
    let greeting = start().greeting.clone();
    let bytes: usize = greeting.strip_prefix("state ").unwrap().parse().unwrap();
    println!("holdfast_link.h: {bytes} bytes of state for 4 open requests on this machine, beside the buffers");
    assert!(bytes < 2_048);
    words::a_bus(Twins(Rust::new(), start()));
    holds(SEEDS_C, start);
}

#[test]
fn the_c_header_speaks_the_frozen_vectors() {
    let Some(program) = compile("vectors") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors.txt");
    let output = Command::new(program).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_example_in_c_compiles() {
    compile("example");
}

#[test]
fn the_python_client_says_the_same_bytes() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no python3 on this machine (Debian: apt-get install python3); holdfast_link was not tried");
        return;
    }
    let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/tests/harness.py");
    holds(SEEDS_PYTHON, || Piped::start(Command::new("python3").arg("-B").arg(&harness)));
}
