//! Other gateways for AI requests, in front of the same mock: a row each where the environment names its program.
//!
//! Owns how each is set up and started; the callers and the mock are everybody's.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use holdfast::clock;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, StatusCode};
use tempfile::TempDir;

use crate::Plan;
use crate::daemon::{Memory, Place};
use crate::load::{self, Caller, Job, Target};
use crate::mock::{self, Mock, Offers};
use crate::online::{self, CALLERS, CHAT, FEW, FIRST_BYTE, PICTURE};
use crate::ways::{self, Way};

/// The command of LiteLLM's proxy (PyPI: `litellm[proxy]`).
const LITELLM: &str = "BENCH_LITELLM";
/// The script that starts Portkey's gateway (npm: `@portkey-ai/gateway`, `build/start-server.js`); wants `node`.
const PORTKEY: &str = "BENCH_PORTKEY";
/// One of them takes a quarter of a minute to start.
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(5);

/// The proxy refuses to start without one that is hard to guess.
static LITELLM_KEY: LazyLock<String> =
    LazyLock::new(|| format!("Bearer sk-{:016x}{:016x}", clock::random_u64(), clock::random_u64()));
/// Where the mock is: it is told with each request.
static PORTKEY_TO: OnceLock<String> = OnceLock::new();

/// One that runs; ended when dropped.
struct Rival {
    name: &'static str,
    child: Child,
    at: SocketAddr,
    dressed: fn(Request<Full<Bytes>>) -> Request<Full<Bytes>>,
    /// From exec to its first right answer.
    took: Duration,
    _dir: TempDir,
}

impl Rival {
    fn way(&self) -> Way {
        let (target, through) = (Target::Tcp(self.at), Some(self.child.id()));
        Way { name: self.name, target, is_right: online::is_ok, dressed: self.dressed, through }
    }

    fn memory(&self) -> (&'static str, Memory) {
        (self.name, Memory::of_family(self.child.id()))
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // Asked and not killed, it takes its workers with it.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// Start-up, memory, and what each takes for a chat, a stream's first byte and a picture.
pub(crate) async fn measure(plan: &Plan) {
    let place = Place::new("uplink = []\n");
    let mock = mock::start(&place.sockets.path().join("mock.sock"), Offers::Http1).await;
    let rivals: Vec<Rival> = [litellm(&mock).await, portkey(&mock).await].into_iter().flatten().collect();
    if rivals.is_empty() {
        println!("\nNo other gateway to compare with: {LITELLM} or {PORTKEY} must name one.");
        return;
    }
    place.configure(&online::configuration(&format!("base_url = \"http://{}/v1\"", mock.tcp)));
    let (daemon, took) = place.start().await;
    let target = Target::Unix(place.socket());
    online::until_online(&target).await;
    println!("\n### Other gateways, over TCP\n\n| gateway | ms from exec to an answer |\n| --- | ---: |");
    println!("| holdfast, to /health | {:.0} |", took.as_secs_f64() * 1e3);
    for rival in &rivals {
        println!("| {} | {:.0} |", rival.name, rival.took.as_secs_f64() * 1e3);
    }
    let memory = |after| {
        ways::memory(after, [("holdfast", daemon.memory())].into_iter().chain(rivals.iter().map(Rival::memory)));
    };
    memory("when idle");
    let ours = Way {
        name: "holdfast",
        target,
        is_right: online::is_uplinks,
        dressed: load::as_it_is,
        through: Some(daemon.pid()),
    };
    let ways: Vec<Way> = std::iter::once(ours).chain(rivals.iter().map(Rival::way)).collect();
    // Whoever is through before the others must not wait until its idle connection is closed.
    let [chat, stream, picture] = [CHAT, FIRST_BYTE, PICTURE].map(|job| Job { warm_up: load::WARM_UP_BIG, ..job });
    ways::compare(&ways, plan, "A chat request and its 600-byte answer", &CALLERS, chat).await;
    memory("after this load");
    let streams = able(&ways, stream).await;
    ways::compare(&streams, plan, "The first byte of a stream", &[FEW], stream).await;
    let pictures = able(&ways, picture).await;
    ways::compare(&pictures, plan, "A picture of 1 MiB and its 600-byte answer", &[FEW], picture).await;
    memory("after 16 x 1 MiB at once");
    daemon.stop().await;
}

/// The ways on which this is answered as it should be; says which are not.
async fn able(ways: &[Way], job: Job) -> Vec<Way> {
    let mut able = Vec::new();
    for way in ways {
        let mut caller = Caller::connect(&way.target).await.unwrap();
        let (answer, _) = caller.call((way.dressed)((job.request)(0))).await.unwrap();
        match answer.status() {
            StatusCode::OK => able.push(way.clone()),
            other => println!("\n{} does not do the next: it answers {other}.", way.name),
        }
    }
    able
}

/// One worker for each processor, as its documentation advises; no database.
async fn litellm(mock: &Mock) -> Option<Rival> {
    let program = std::env::var_os(LITELLM)?;
    let dir = tempfile::tempdir().unwrap();
    let key = LITELLM_KEY.trim_start_matches("Bearer ");
    let config = format!(
        "model_list:\n  - model_name: bench\n    litellm_params: {{model: openai/bench, \
         api_base: \"http://{}/v1\", api_key: key}}\ngeneral_settings: {{master_key: \"{key}\"}}\n",
        mock.tcp
    );
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    let at = free_address();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut command = Command::new(program);
    command.arg("--config").arg(dir.path().join("config.yaml")).args(["--host", "127.0.0.1", "--telemetry", "False"]);
    command.args(["--port", &at.port().to_string(), "--num_workers", &workers.to_string()]);
    // Prices out of its package, and no line for each request.
    command.envs([("LITELLM_LOCAL_MODEL_COST_MAP", "True"), ("LITELLM_LOG", "ERROR")]);
    Some(start("LiteLLM", command, at, with_key, dir).await)
}

fn with_key(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_str(&LITELLM_KEY).unwrap());
    request
}

async fn portkey(mock: &Mock) -> Option<Rival> {
    let script = std::env::var_os(PORTKEY)?;
    PORTKEY_TO.set(format!("http://{}/v1", mock.tcp)).unwrap();
    let at = free_address();
    let mut command = Command::new("node");
    command.arg(script).arg("--headless").arg(format!("--port={}", at.port()));
    Some(start("Portkey", command, at, with_uplink, tempfile::tempdir().unwrap()).await)
}

fn with_uplink(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let headers = request.headers_mut();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer key"));
    headers.insert("x-portkey-provider", HeaderValue::from_static("openai"));
    headers.insert("x-portkey-custom-host", HeaderValue::from_str(PORTKEY_TO.get().unwrap()).unwrap());
    request
}

/// Free a moment ago: they take no listener that is open already.
fn free_address() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

async fn start(
    name: &'static str,
    mut command: Command,
    at: SocketAddr,
    dressed: fn(Request<Full<Bytes>>) -> Request<Full<Bytes>>,
    dir: TempDir,
) -> Rival {
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let started = clock::now();
    let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
    let mut rival = Rival { name, child, at, dressed, took: Duration::ZERO, _dir: dir };
    while !answers(&rival.way()).await {
        let ended = rival.child.try_wait().unwrap();
        let waits = ended.is_none() && started.elapsed() < PATIENCE;
        assert!(waits, "{name} does not answer ({ended:?}): {}", told(&log));
        tokio::time::sleep(LOOK).await;
    }
    rival.took = started.elapsed();
    rival
}

async fn answers(way: &Way) -> bool {
    let Ok(mut caller) = Caller::connect(&way.target).await else { return false };
    let request = (way.dressed)((CHAT.request)(0));
    caller.call(request).await.is_ok_and(|(answer, _)| answer.status() == 200)
}

fn told(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}
