//! One client's row: a daemon and simulators of its own, the client's program as a child, one step after the other.
//!
//! Owns the child and its pipes; what a step arranges and looks at is in `steps`.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cell::Cell;
use crate::install::{self, Installed};
use crate::rows::Client;
use crate::steps::{self, Step};
use crate::support::{Bench, Settings, listening};

/// The longest wait of a client is for a ticket: three tries of up to 30 s each, and its own pauses between them.
const STEP: Duration = Duration::from_secs(150);

/// The client's program.
struct Program {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// What it complains of.
    log: PathBuf,
}

impl Program {
    fn start(installed: &Installed, target: &str, log: PathBuf) -> std::io::Result<Program> {
        let mut command = Command::new(&installed.program);
        command.args(&installed.arguments).arg(target).kill_on_drop(true);
        // A key or a proxy of this machine is nobody's business here.
        for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OLLAMA_HOST", "HTTP_PROXY", "http_proxy"]
        {
            command.env_remove(name);
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("LANGSMITH_TRACING", "false");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Ok(Program { child, input, output: BufReader::new(output).lines(), log })
    }

    /// Asks for one step and waits for its end.
    async fn step(&mut self, name: &str, text: &str) -> Cell {
        let line = format!("{name}\t{text}\n");
        if self.input.write_all(line.as_bytes()).await.is_err() {
            return self.ended().await;
        }
        match tokio::time::timeout(STEP, self.answer()).await {
            Ok(Some(cell)) => cell,
            Ok(None) => self.ended().await,
            Err(_) => {
                // Whatever it says later belongs to no other step.
                let _ = self.child.kill().await;
                Cell::No(format!("no end after {} s", STEP.as_secs()))
            }
        }
    }

    async fn answer(&mut self) -> Option<Cell> {
        while let Ok(Some(line)) = self.output.next_line().await {
            if let Some(said) = line.strip_prefix("@ ") {
                return Some(Cell::read(said));
            }
        }
        None
    }

    async fn ended(&mut self) -> Cell {
        // Its last words are in the file once it is gone.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
        let complaint = std::fs::read_to_string(&self.log).unwrap_or_default();
        Cell::No(format!("its program ended: {}", complaint.lines().last().unwrap_or("it said nothing")))
    }
}

/// Does every step; returns the cells in the table's order.
pub async fn cells(client: &Client, installed: &Installed) -> Vec<Cell> {
    let (http, place) = listening();
    let bench = Bench::with(Settings { http, ..Settings::default() }).await;
    let target = if client.by_socket { bench.daemon.socket().display().to_string() } else { format!("http://{place}") };
    let log = install::folder(&format!("{}.log", client.name.replace(' ', "-")));
    let mut program = match Program::start(installed, &target, log) {
        Ok(program) => program,
        Err(error) => return vec![Cell::No(format!("it does not start: {error}")); steps::ALL.len()],
    };
    let mut cells = Vec::new();
    for step in &steps::ALL {
        let cell = one(step, client, &bench, &mut program).await;
        eprintln!("{:16} {:10} {:4} {}", client.name, step.name, cell.word(), cell.note());
        cells.push(cell);
    }
    cells
}

async fn one(step: &Step, client: &Client, bench: &Bench, program: &mut Program) -> Cell {
    let text = steps::text(step, client);
    steps::arrange(step, client, bench).await;
    let cell = tokio::select! {
        cell = program.step(step.name, &text) => cell,
        () = steps::meanwhile(step, client, bench) => unreachable!("it never ends"),
    };
    let seen = match &cell {
        Cell::Yes(_) => steps::check(step, client, bench, &text).await,
        _ => Ok(()),
    };
    cell.and(seen)
}
