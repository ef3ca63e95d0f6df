//! What all promise tests share: a bench with the daemon and both simulators, bounded waiting, checks of records.
//!
//! Owns no promise itself.

mod daemon;
mod device;
mod http;
mod manager;
mod terminal;

use std::future::Future;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use holdfast::cli::simulate::{
    Faults, Mode, OllamaOptions, Simulator, StatusOn, UplinkOptions, serve_ollama, serve_uplink,
};
use holdfast::clock;
use serde_json::Value;

pub use daemon::Daemon;
pub use device::{Peer, Request, Told};
pub use http::{Ask, Reply, chat_body, events, stream_text};
pub use manager::Manager;
pub use terminal::wired;

/// The uplink's key that the daemon gets through its environment.
pub const KEY: &str = "sk-bench-key";

/// What a test wants different from the usual bench.
#[derive(Clone)]
pub struct Settings {
    /// The `[local]` section's own lines; `None` for the simulated Ollama.
    pub local: Option<String>,
    /// `[local] keep_warm`, where the simulated Ollama is used.
    pub keep_warm: &'static str,
    /// Requests that the drain may have under way; 1 keeps the order visible.
    pub drain_in_flight: u32,
    /// Time-outs of a busy machine, where much is sent at once and how soon it is answered is not the question.
    pub patient: bool,
    /// `[retry] on_unknown`.
    pub on_unknown: &'static str,
    /// `[limits] rate` and `burst`; a rate of 0 is no limit.
    pub rate: (u32, u32),
    /// The lines of `[cache]`; off where a test is not about it.
    pub cache: String,
    /// `[limits] per_source_backlog`.
    pub per_source_backlog: u32,
    /// Further lines of `[http]`.
    pub http: String,
    /// Where the data goes instead of the daemon's own folder.
    pub data_dir: Option<String>,
    /// Further configuration.
    pub extra: String,
    /// What else the daemon has in its environment.
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            local: None,
            keep_warm: "never",
            drain_in_flight: 1,
            patient: false,
            on_unknown: "resend",
            rate: (0, 1),
            cache: "ttl = \"0s\"".to_owned(),
            per_source_backlog: 100_000,
            http: String::new(),
            data_dir: None,
            extra: String::new(),
            environment: Vec::new(),
        }
    }
}

impl Settings {
    /// No local model at all.
    pub fn without_local() -> Settings {
        Settings { local: Some("base_url = \"\"".to_owned()), ..Settings::default() }
    }
}

/// The daemon between two simulators.
pub struct Bench {
    pub daemon: Daemon,
    pub uplink: Simulator,
    pub ollama: Simulator,
}

impl Bench {
    /// Everything healthy.
    pub async fn start() -> Bench {
        Bench::with(Settings::default()).await
    }

    /// Everything healthy, with other settings.
    pub async fn with(settings: Settings) -> Bench {
        let bench = Bench::at_once(settings).await;
        bench.wait_online().await;
        bench
    }

    /// The same without waiting for the uplink to be seen.
    pub async fn at_once(settings: Settings) -> Bench {
        let key = Some(KEY.to_owned());
        let uplink = serve_uplink(UplinkOptions { key, ..UplinkOptions::default() }).await.unwrap();
        let ollama = serve_ollama(OllamaOptions::default()).await.unwrap();
        let config = config(&settings, &uplink.base_url(), &ollama.base_url());
        let daemon = Daemon::start_with(&config, settings.environment).await;
        Bench { daemon, uplink, ollama }
    }

    /// An outage from the start: the uplink refuses connections and the daemon knows.
    pub async fn offline(settings: Settings) -> Bench {
        let bench = Bench::with(settings).await;
        bench.outage(Faults::failing(Mode::Refuse)).await;
        bench
    }

    /// Begins an outage; returns once the health check has noticed.
    pub async fn outage(&self, faults: Faults) {
        self.uplink.set_faults(faults).await;
        self.wait_offline().await;
    }

    /// Ends the outage; returns once the backlog is empty.
    pub async fn recover(&self) {
        self.uplink.set_faults(Faults::default()).await;
        until("the backlog to drain", 60, || async { (self.daemon.backlog().await == 0).then_some(()) }).await;
    }

    /// Waits until an ordinary probe of the uplink has passed.
    pub async fn wait_online(&self) {
        until("the uplink to be seen healthy", 10, || async {
            let provider = self.provider().await;
            (provider["status"] == "healthy" && provider["consecutive_failures"] == 0).then_some(())
        })
        .await;
    }

    /// Waits until `fall` probes have failed.
    pub async fn wait_offline(&self) {
        until("the outage to be seen", 10, || async {
            let failures = self.provider().await["consecutive_failures"].as_u64().unwrap_or(0);
            (failures >= 2).then_some(())
        })
        .await;
    }

    async fn provider(&self) -> Value {
        self.daemon.get("/v1/health").await.json()["providers"]["sim"].clone()
    }

    /// How often a prompt reached the uplink and was answered.
    pub fn answered(&self, user: &str) -> usize {
        self.uplink.log().iter().filter(|entry| entry.user == user && entry.status == 200).count()
    }
}

/// A configuration with every wait as short as it can be on a slow machine.
fn config(settings: &Settings, uplink: &str, ollama: &str) -> String {
    let local = settings.local.clone().unwrap_or_else(|| {
        format!(
            "base_url = \"{ollama}\"\nmodel = \"llama3.2:latest\"\nvision_model = \"llava:latest\"\n\
             keep_warm = \"{}\"\nmax_temperature_c = 200",
            settings.keep_warm
        )
    });
    let (probe, wait, total) = if settings.patient { ("10s", "120s", "300s") } else { ("200ms", "5s", "20s") };
    format!(
        r#"
[gateway]
data_dir = "{data_dir}"
device_id = "bench"

[http]
socket = "@DIR@/hf.sock"
{http}

[[uplink]]
name = "sim"
base_url = "{uplink}/v1"
api_keys = [{{ env = "BENCH_UPLINK_KEY" }}]
models = {{ "house-model" = "deepseek-v3.2" }}
probe = {{ path = "/models", interval = "100ms", timeout = "{probe}", fall = 2, rise = 1 }}
breaker = {{ failures = 3, open_for = "500ms" }}
timeouts = {{ connect = "500ms", first_byte = "{wait}", idle = "{wait}", total = "{total}" }}

[local]
{local}

[drain]
max_in_flight = {drain}
start_jitter = "0s"

[retry]
base = "50ms"
max = "500ms"
on_unknown = "{on_unknown}"

[cache]
{cache}

[limits]
rate = {rate}
burst = {burst}
per_source_backlog = {backlog}

{extra}
"#,
        drain = settings.drain_in_flight,
        data_dir = settings.data_dir.as_deref().unwrap_or("@DIR@/data"),
        cache = settings.cache,
        http = settings.http,
        on_unknown = settings.on_unknown,
        rate = settings.rate.0,
        burst = settings.rate.1,
        backlog = settings.per_source_backlog,
        extra = settings.extra,
    )
}

/// Only requests are refused; the probe stays green.
pub fn refusing(status: u16) -> Faults {
    Faults { status_on: StatusOn::Post, ..Faults::status(status) }
}

/// A port that nobody listens on now, and that no other test is given: below those that Linux gives to connections
/// (`ip_local_port_range`, from 32768), where between this look and the daemon's start another's may take it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16;
    let ports = || 20_000 + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(ports).take(1_000).find(free).expect("a free port")
}

/// The line of `[http]` that makes the daemon listen on TCP too, and the address.
pub fn listening() -> (String, String) {
    let address = format!("127.0.0.1:{}", free_port());
    (format!("listen = [\"{address}\"]"), address)
}

/// Asks again every 10 ms until there is something; fails the test after `seconds`.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, seconds: u64, mut ask: impl FnMut() -> F) -> T {
    let started = clock::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(seconds), "waited {seconds} s in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Fails the test if `work` takes longer than `seconds`.
pub async fn within<T>(what: &str, seconds: u64, work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(seconds);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what} took longer than {seconds} s"))
}

/// A number from the environment, for long runs outside CI.
pub fn rounds(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect(variable))
}
