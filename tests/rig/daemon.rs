//! The real program as a child, and a client so plain that nothing stands between a test and an acknowledgement.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The key that the configuration names and the simulated uplink wants.
pub const KEY: &str = "rig-key-0123456789";
/// An answer that does not come within this time does not come.
const ANSWER: Duration = Duration::from_secs(20);

/// Writes the configuration of a gateway in `dir` with one uplink, no local model and every wait short.
pub fn configure(dir: &Path, uplink: &str, extra: &str) -> io::Result<()> {
    let at = dir.display();
    let text = format!(
        r#"
[gateway]
data_dir = "{at}/data"
device_id = "rig"

[http]
socket = "{at}/hf.sock"

[[uplink]]
name = "sim"
base_url = "{uplink}/v1"
api_keys = [{{ env = "RIG_UPLINK_KEY" }}]
models = {{ "house-model" = "deepseek-v3.2" }}
probe = {{ path = "/models", interval = "100ms", timeout = "500ms", fall = 2, rise = 1 }}

[local]
base_url = ""

[drain]
max_in_flight = 8
start_jitter = "0s"

[retry]
base = "50ms"
max = "500ms"

[limits]
rate = 0
per_source_backlog = 1000000

[queue]
max_requests = 400000
max_bytes = "8GiB"
min_disk_free = "1MiB"

{extra}
"#
    );
    std::fs::write(dir.join("holdfast.toml"), text)
}

/// Starts the gateway of this folder and does not wait.
pub fn start(dir: &Path) -> io::Result<Child> {
    start_with(dir, &[])
}

/// The same with more in its environment.
pub fn start_with(dir: &Path, environment: &[(&str, String)]) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("daemon.log"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    // Every HOLDFAST_ variable but the planted mistake is configuration to the daemon.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") && name != "HOLDFAST_PLANT" {
            command.env_remove(name);
        }
    }
    command.args(["run", "--config"]).arg(dir.join("holdfast.toml")).current_dir(dir);
    command.env("RIG_UPLINK_KEY", KEY).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
}

/// Where it listens.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("hf.sock")
}

/// One connection.
pub struct Line {
    stream: BufReader<UnixStream>,
}

impl Line {
    /// Connects, if the gateway listens.
    pub fn open(socket: &Path) -> io::Result<Line> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(Line { stream: BufReader::new(stream) })
    }

    /// A POST without a body; the status.
    pub fn post(&mut self, path: &str) -> io::Result<u16> {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        self.stream.get_mut().write_all(head.as_bytes())?;
        Ok(self.answer()?.0)
    }

    /// Asks for a chat to be stored; the status and the answer's text.
    pub fn store(&mut self, text: &str) -> io::Result<(u16, String)> {
        let body = format!(r#"{{"model":"house-model","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
             prefer: respond-async\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(head.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<(u16, String)> {
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(0);
            } else if let Some(rest) = line.strip_prefix("content-length:") {
                length = rest.trim().parse().unwrap_or(0);
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
