//! `[gateway]` and `[http]`: who this is, where it keeps things and where it listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::units::quoted;
use super::walk::Table;

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Holds the spool, the cache and the ledger.
    pub data_dir: PathBuf,
    /// This device's name; the host name by default.
    pub device_id: String,
    /// How long running answers get after SIGTERM.
    pub stop_grace: Duration,
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// The UNIX socket.
    pub socket: PathBuf,
    /// Its permission bits.
    pub socket_mode: u32,
    /// TCP addresses; none by default.
    pub listen: Vec<SocketAddr>,
    /// Bearer tokens for TCP.
    pub token_file: Option<PathBuf>,
    /// Certificate chain for TCP, PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Browser origins that may call over TCP.
    pub allowed_origins: Vec<String>,
    /// Names under which callers may ask for this gateway over TCP, beside its addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// The largest request body in bytes.
    pub max_body: u64,
    /// How many requests are served at once.
    pub max_in_flight: u32,
}

/// The two places that depend on whether this is an installed gateway or a trial in a folder.
pub(super) struct Places {
    pub(super) data_dir: &'static str,
    pub(super) socket: &'static str,
}

/// With a configuration file.
pub(super) const INSTALLED: Places = Places { data_dir: "/var/lib/holdfast", socket: "/run/holdfast/holdfast.sock" };

/// Without one: everything below the current folder.
pub(super) const TRIAL: Places = Places { data_dir: "./holdfast-data", socket: "./holdfast-data/holdfast.sock" };

pub(super) fn gateway(t: &mut Table<'_>, places: &Places) -> Gateway {
    let path = |text: &str| if text.is_empty() { Err("may not be empty".to_owned()) } else { Ok(PathBuf::from(text)) };
    Gateway {
        data_dir: t.parsed("data_dir", places.data_dir, "a path in quotes", path).unwrap_or_default(),
        device_id: t.parsed("device_id", &host_name(), "a name in quotes", device_name).unwrap_or_default(),
        stop_grace: t.duration("stop_grace", "10s", "0s"),
    }
}

pub(super) fn http(t: &mut Table<'_>, places: &Places) -> Http {
    let http = Http {
        socket: t.parsed("socket", places.socket, "a path in quotes", socket_path).unwrap_or_default(),
        socket_mode: t.parsed("socket_mode", "0660", "permission bits in quotes, such as \"0660\"", mode).unwrap_or(0),
        listen: t.list("listen", "127.0.0.1:8080", address),
        token_file: t.path("token_file", ""),
        tls_cert: t.path("tls_cert", ""),
        tls_key: t.path("tls_key", ""),
        allowed_origins: t.list("allowed_origins", "https://panel.example", origin),
        allowed_hosts: t.list("allowed_hosts", "gateway.local", host),
        max_body: t.size("max_body", "32MiB", 1),
        max_in_flight: t.count("max_in_flight", 256, 1..=65_536),
    };
    if http.tls_cert.is_some() != http.tls_key.is_some() {
        let missing = if http.tls_cert.is_some() { "tls_key" } else { "tls_cert" };
        t.fault(missing, "missing; tls_cert and tls_key are given together or not at all");
    }
    for (index, twice) in http.listen.iter().enumerate().filter(|(at, address)| http.listen[..*at].contains(address)) {
        t.fault("listen", format!("{twice} stands there twice; remove number {}", index + 1));
    }
    for open in http.listen.iter().filter(|address| !address.ip().is_loopback()) {
        let given = [("token_file", &http.token_file), ("tls_cert", &http.tls_cert), ("tls_key", &http.tls_key)];
        let missing: Vec<_> = given.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            t.fault("listen", format!("{open} can be reached by others; set {missing} too, or listen on 127.0.0.1"));
        }
    }
    http
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A board whose host name nobody set must still start.
    if device_name(&name).is_ok() { name } else { "holdfast".to_owned() }
}

fn device_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("must be 1 to 64 letters, digits or signs, without spaces".to_owned()) }
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("may not be empty; the socket is how the holdfast tool reaches the gateway".to_owned());
    }
    bindable(Path::new(text)).map(Path::to_path_buf)
}

/// The kernel's limit for a socket's name is 108 bytes with its end mark.
pub(super) fn bindable(socket: &Path) -> Result<&Path, String> {
    match socket.as_os_str().len() {
        ..=107 => Ok(socket),
        length => Err(format!("is {length} bytes long; a socket's path has at most 107")),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("{} is not a file mode; write octal digits, such as \"0660\"", quoted(text)))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let hint = "write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"";
    text.parse().map_err(|_| format!("{} is not an address; {hint}", quoted(text)))
}

/// Without its port: that is checked by having been connected to.
fn host(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let hint = "write a name without scheme and port, such as \"gateway.local\"";
    if fits { Ok(text.to_ascii_lowercase()) } else { Err(format!("{} is not a host name; {hint}", quoted(text))) }
}

fn origin(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or("");
    if host.is_empty() || host.contains('/') {
        let hint = "write scheme and host without a path, such as \"https://panel.example\"";
        return Err(format!("{} is not a browser origin; {hint}", quoted(text)));
    }
    Ok(text.to_owned())
}
