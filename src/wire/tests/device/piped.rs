//! A device in another language as a child process: commands out, what it told and sent back, one line each.
//!
//! Owns the pipes. `tests/c/harness.c` and the Python client's harness speak this and describe it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::machine::{Machine, Told, Turn};

pub struct Piped {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// What it said of itself at its start.
    pub greeting: String,
}

impl Piped {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut piped = Self { child, to, from, greeting: String::new() };
        piped.greeting = piped.line();
        piped.start_device(1, 0);
        piped
    }

    fn say(&mut self, line: &str) {
        self.to.write_all(line.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.from.read_line(&mut line).unwrap() > 0, "the device's program ended");
        line.trim_end().to_owned()
    }

    fn start_device(&mut self, boot_id: u32, now_ms: u64) {
        self.say(&format!("start {boot_id} {now_ms}\n"));
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.trim_start_matches('-');
    (0..digits.len() / 2).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap()).collect()
}

impl Machine for Piped {
    fn keep(&mut self, key: u64, wants_result: bool, picture: &[u8]) {
        let line = format!("keep {key} {} {}\n", u8::from(wants_result), hex(picture));
        self.say(&line);
    }

    fn forget(&mut self, key: u64) {
        self.say(&format!("forget {key}\n"));
    }

    fn start(&mut self, boot_id: u32, now_ms: u64) {
        self.start_device(boot_id, now_ms);
    }

    fn start_on_bus(&mut self, boot_id: u32, now_ms: u64) {
        self.say(&format!("bus {boot_id} {now_ms}\n"));
    }

    fn submit(&mut self, key: u64, wants_result: bool, now_ms: u64) {
        self.say(&format!("submit {key} {} {now_ms}\n", u8::from(wants_result)));
    }

    fn turn(&mut self, bytes: &[u8], now_ms: u64) -> Turn {
        self.say(&format!("turn {now_ms} {}\n", hex(bytes)));
        let mut turn = Turn::default();
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["."] => return turn,
                ["send", bytes] => turn.sent.push(unhex(bytes)),
                ["stored", key] => turn.told.push(Told::Stored(key.parse().unwrap())),
                ["refused", key] => turn.told.push(Told::Refused(key.parse().unwrap())),
                ["gone", key] => turn.told.push(Told::Gone(key.parse().unwrap())),
                ["answer", key, last, text] => {
                    turn.told.push(Told::Answer { key: key.parse().unwrap(), last: last == "1", text: unhex(text) });
                }
                _ => panic!("the device's program says {line:?}"),
            }
        }
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compiles one C program with the header; `None`, loudly, where there is no C compiler.
pub fn compile(name: &str) -> Option<PathBuf> {
    if Command::new("cc").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no cc on this machine (Debian: apt-get install gcc); holdfast_link.h was not tried");
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let mut command = Command::new("cc");
    command.args(["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]).arg(here().join("c"));
    let source = if name == "example" { here().join("c") } else { here().join("tests/c") }.join(format!("{name}.c"));
    let output = command.arg(source).arg("-o").arg(&program).output().unwrap();
    assert!(output.status.success(), "{name}.c: {}", String::from_utf8_lossy(&output.stderr));
    Some(program)
}
