//! `holdfast simulate uplink|ollama|device`: stand-ins for commissioning without a key, usable in-process too.
//!
//! Owns the command line of the simulators and how they are started; never part of the gateway itself, and never the
//! thing that is being tested. A simulator has no state that outlives it.

mod device;
mod door;
mod faults;
mod log;
mod ollama;
mod ollama_chat;
mod openai;
mod server;
mod text;
mod tools;
mod uplink;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};

pub(super) use device::Line;
pub use device::{Ask, DeviceOptions, Ended, LineAt, Protocol, run_device};
use faults::STATUSES;
pub use faults::{Faults, Mode, StatusOn};
pub use log::Entry;
pub use server::Simulator;

/// Where a simulator listens: an IP address with port, or the path of a UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// Port 0 takes any free one.
    Tcp(SocketAddr),
    /// The file is replaced if it is there.
    Unix(PathBuf),
}

impl Listen {
    /// Any free port on loopback.
    pub fn any() -> Listen {
        Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        if text.contains('/') {
            return Ok(Listen::Unix(PathBuf::from(text)));
        }
        text.parse().map(Listen::Tcp).map_err(|_| format!("{text:?} is neither IP:PORT nor a path with a slash"))
    }
}

/// How to start a simulated uplink.
#[derive(Debug, Clone)]
pub struct UplinkOptions {
    /// Where it answers.
    pub listen: Listen,
    /// A second listener for `/simulator/*` that stays reachable while the first refuses.
    pub control: Option<SocketAddr>,
    /// What goes wrong from the start.
    pub faults: Faults,
    /// The models it lists.
    pub models: Vec<String>,
    /// Models that are not listed get 404.
    pub strict: bool,
    /// The only bearer token it takes.
    pub key: Option<String>,
}

impl Default for UplinkOptions {
    fn default() -> Self {
        let models = ["gpt-4o", "gpt-4o-mini", "gpt-4.1", "deepseek-v3.2", "text-embedding-3-small"];
        UplinkOptions {
            listen: Listen::any(),
            control: None,
            faults: Faults::default(),
            models: models.map(str::to_owned).to_vec(),
            strict: false,
            key: None,
        }
    }
}

/// How to start a simulated Ollama.
#[derive(Debug, Clone)]
pub struct OllamaOptions {
    /// Where it answers.
    pub listen: Listen,
    /// A second listener for `/simulator/*` that stays reachable while the first refuses.
    pub control: Option<SocketAddr>,
    /// What goes wrong from the start.
    pub faults: Faults,
    /// The models it has; others get Ollama's own 404.
    pub models: Vec<String>,
    /// Requests that may wait for the one that runs; more get Ollama's own 503.
    pub queue_max: usize,
}

impl Default for OllamaOptions {
    fn default() -> Self {
        OllamaOptions {
            listen: Listen::any(),
            control: None,
            faults: Faults::default(),
            models: ["llama3.2:latest", "llava:latest", "nomic-embed-text:latest"].map(str::to_owned).to_vec(),
            queue_max: 512,
        }
    }
}

/// Starts a simulated uplink in this process; it ends when the handle is dropped.
pub async fn serve_uplink(options: UplinkOptions) -> std::io::Result<Simulator> {
    let kind = server::Kind::Uplink(uplink::Uplink::new(&options));
    Simulator::start(options.listen, options.control, options.faults, kind).await
}

/// Starts a simulated Ollama in this process; it ends when the handle is dropped.
pub async fn serve_ollama(options: OllamaOptions) -> std::io::Result<Simulator> {
    let kind = server::Kind::Ollama(ollama::Ollama::new(&options));
    Simulator::start(options.listen, options.control, options.faults, kind).await
}

/// `holdfast simulate …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// An OpenAI-compatible uplink with faults to switch on
    Uplink(UplinkArgs),
    /// An Ollama with its native API
    Ollama(OllamaArgs),
    /// A device on a serial line, a UNIX socket or TCP
    Device(Box<device::DeviceArgs>),
}

/// Arguments of `holdfast simulate uplink`.
#[derive(Debug, Args)]
pub struct UplinkArgs {
    /// IP:PORT or the path of a UNIX socket; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:8089")]
    listen: Listen,
    /// The only bearer token it takes; without it, any
    #[arg(long)]
    key: Option<String>,
    /// Answer 404 to models that are not listed
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    shared: SharedArgs,
}

/// Arguments of `holdfast simulate ollama`.
#[derive(Debug, Args)]
pub struct OllamaArgs {
    /// IP:PORT or the path of a UNIX socket; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:11434")]
    listen: Listen,
    #[command(flatten)]
    shared: SharedArgs,
}

#[derive(Debug, Args)]
struct SharedArgs {
    /// Where the fault switch stays reachable even while the simulator refuses connections
    #[arg(long, default_value = "127.0.0.1:0")]
    control: SocketAddr,
    /// A model it has; may be given several times
    #[arg(long = "model")]
    models: Vec<String>,
    /// What goes wrong from the start
    #[arg(long, value_enum, default_value = "none")]
    fail: Mode,
    /// Wait this long before each answer, such as 500ms or 2s
    #[arg(long, value_parser = text::duration_ms, default_value = "0ms")]
    delay: u64,
    /// Wait this long between the pieces of a stream
    #[arg(long, value_parser = text::duration_ms, default_value = "0ms")]
    chunk_delay: u64,
    /// Answer everything with this HTTP status (100 to 599)
    #[arg(long, value_parser = clap::value_parser!(u16).range(STATUSES))]
    status: Option<u16>,
    /// Cut the connection after this many pieces of a stream
    #[arg(long)]
    cut_after: Option<usize>,
}

impl SharedArgs {
    fn faults(&self) -> Faults {
        Faults {
            fail: self.fail,
            status: self.status,
            delay_ms: self.delay,
            chunk_ms: self.chunk_delay,
            cut_after: self.cut_after,
            ..Faults::default()
        }
    }

    fn models(&self, default: Vec<String>) -> Vec<String> {
        if self.models.is_empty() { default } else { self.models.clone() }
    }
}

/// Runs one simulator: a server until SIGINT or SIGTERM, a device until it has its answers; `socket` is where a
/// device finds its gateway.
pub async fn run(command: Command, socket: Option<PathBuf>) -> anyhow::Result<()> {
    let simulator = match command {
        Command::Uplink(args) => start_uplink(args).await?,
        Command::Ollama(args) => start_ollama(args).await?,
        Command::Device(args) => return device::run(*args, socket).await,
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", simulator.base_url())?;
    if let Some(control) = simulator.control_url() {
        writeln!(out, "control: {control}/simulator/faults and /simulator/log")?;
    }
    out.flush()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

async fn start_uplink(args: UplinkArgs) -> std::io::Result<Simulator> {
    let default = UplinkOptions::default();
    let (faults, models) = (args.shared.faults(), args.shared.models(default.models));
    let control = Some(args.shared.control);
    let UplinkArgs { listen, key, strict, .. } = args;
    serve_uplink(UplinkOptions { listen, control, faults, models, strict, key }).await
}

async fn start_ollama(args: OllamaArgs) -> std::io::Result<Simulator> {
    let default = OllamaOptions::default();
    let (faults, models) = (args.shared.faults(), args.shared.models(default.models));
    let (listen, control) = (args.listen, Some(args.shared.control));
    serve_ollama(OllamaOptions { listen, control, faults, models, queue_max: default.queue_max }).await
}
