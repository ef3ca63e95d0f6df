//! `[[uplink]]`: the cloud endpoints.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::secret::KeySource;
use super::units::quoted;
use super::walk::Table;
use crate::control::types::words;

/// The uplink that exists where nobody names one.
const BUILT_IN: &str = "holysheep";
const BUILT_IN_URL: &str = "https://api.holysheep.ai/v1";
const BUILT_IN_KEY: &str = "HOLYSHEEP_API_KEY";

/// How a key travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer …`.
    Bearer,
    /// `api-key: …`, as Azure OpenAI wants it.
    ApiKey,
}
words!(Auth { Bearer => "bearer", ApiKey => "api-key" });

/// One `[[uplink]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Uplink {
    /// Unique; appears in headers, logs and metrics.
    pub name: String,
    /// `http` or `https`, without a trailing slash.
    pub base_url: String,
    /// Its keys, in the order in which they are used; none is legal.
    pub api_keys: Vec<ApiKey>,
    /// How a key travels.
    pub auth: Auth,
    /// Lower is tried first.
    pub priority: u32,
    /// Share among equals under the weighted strategy.
    pub weight: u32,
    /// How many requests it is given at once.
    pub max_in_flight: u32,
    /// Nothing is paid for what it answers: `[budget]` never holds it back.
    pub free: bool,
    /// Extra root certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Client's model name to this uplink's.
    pub models: BTreeMap<String, String>,
    /// Health checks.
    pub probe: Probe,
    /// Circuit breaker.
    pub breaker: Breaker,
    /// Limits on waiting.
    pub timeouts: UplinkTimeouts,
}

/// One key of an uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiKey {
    /// Where it is kept.
    pub source: KeySource,
    /// How many requests are given to it at once; `None` where only the uplink's own number counts.
    pub max_in_flight: Option<u32>,
}

/// Keys of one uplink: each is asked once at most for a request that all of them refuse.
const KEYS_MAX: usize = 16;

/// Health checks of an uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Appended to `base_url`.
    pub path: String,
    /// From one check to the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row until it is unhealthy.
    pub fall: u32,
    /// Successes in a row until it is healthy.
    pub rise: u32,
    /// Slower than this is degraded.
    pub degraded_above: Duration,
}

/// An uplink's circuit breaker.
#[derive(Debug, Clone, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open before one trial.
    pub open_for: Duration,
}

/// Limits on waiting for an uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct UplinkTimeouts {
    /// Name look-up, TCP and TLS together.
    pub connect: Duration,
    /// From the request's end to the answer's first byte.
    pub first_byte: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// The whole attempt.
    pub total: Duration,
}

/// All of them; the built-in one where nobody named any.
pub(super) fn uplinks(root: &mut Table<'_>) -> Vec<Uplink> {
    let uplinks = root.tables("uplink", 1, uplink);
    for (index, later) in uplinks.iter().enumerate() {
        if let Some(first) = uplinks.iter().take(index).position(|earlier| earlier.name == later.name) {
            let name = quoted(&later.name);
            root.member_fault(
                "uplink",
                index,
                "name",
                format!("uplink[{first}] is called {name} too; give each a name of its own"),
            );
        }
    }
    uplinks
}

fn uplink(t: &mut Table<'_>) -> Uplink {
    let name = t.parsed("name", BUILT_IN, "a name in quotes", uplink_name).unwrap_or_default();
    let built_in = name == BUILT_IN;
    if !built_in && !t.given("base_url") {
        t.fault("base_url", "missing; write where this uplink is, such as base_url = \"https://api.example/v1\"");
    }
    let url = if built_in { BUILT_IN_URL } else { "" };
    Uplink {
        base_url: t.parsed("base_url", url, "a URL in quotes", |text| http_url(text, EXAMPLE)).unwrap_or_default(),
        api_keys: api_keys(t, built_in),
        auth: t.word("auth", Auth::Bearer),
        priority: t.count("priority", 1, 0..=1_000_000),
        weight: t.count("weight", 1, 1..=1_000_000),
        max_in_flight: t.count("max_in_flight", 32, 1..=65_536),
        free: t.flag("free", false),
        ca_file: t.path("ca_file", ""),
        models: t.map("models"),
        probe: t.table("probe", probe),
        breaker: t.table("breaker", |t| Breaker {
            failures: t.count("failures", 3, 1..=1_000_000),
            open_for: t.duration("open_for", "30s", "1ms"),
        }),
        timeouts: t.table("timeouts", |t| UplinkTimeouts {
            connect: t.duration("connect", "2s", "1ms"),
            first_byte: t.duration("first_byte", "30s", "1ms"),
            idle: t.duration("idle", "30s", "1ms"),
            total: t.duration("total", "120s", "1ms"),
        }),
        name,
    }
}

fn probe(t: &mut Table<'_>) -> Probe {
    let path = |text: &str| {
        let fits = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(text.to_owned()) } else { Err(format!("{} is not a path; begin it with \"/\"", quoted(text))) }
    };
    Probe {
        path: t.parsed("path", "/models", "a path in quotes", path).unwrap_or_default(),
        interval: t.duration("interval", "2s", "10ms"),
        timeout: t.duration("timeout", "1s", "1ms"),
        fall: t.count("fall", 3, 1..=1000),
        rise: t.count("rise", 1, 1..=1000),
        degraded_above: t.duration("degraded_above", "1500ms", "1ms"),
    }
}

const NO_KEY_HERE: &str =
    "a key is not kept in this file; use { env = \"…\" }, { file = \"…\" } or { credential = \"…\" }";

fn api_keys(t: &mut Table<'_>, built_in: bool) -> Vec<ApiKey> {
    // Another endpoint must never be sent the built-in one's key.
    if built_in && !t.given("api_keys") {
        t.ask("api_keys");
        t.show("api_keys[0].env", json!(BUILT_IN_KEY));
        return vec![ApiKey { source: KeySource::Env(BUILT_IN_KEY.to_owned()), max_in_flight: None }];
    }
    if t.holds_text("api_keys") {
        t.ask("api_keys");
        t.fault("api_keys", format!("{NO_KEY_HERE}, in an array: api_keys = [{{ env = \"NAME\" }}]"));
        return Vec::new();
    }
    let keys: Vec<ApiKey> = t.tables("api_keys", 0, api_key).into_iter().flatten().collect();
    if keys.len() > KEYS_MAX {
        t.fault("api_keys", format!("names {} keys; an uplink has {KEYS_MAX} at most", keys.len()));
    }
    keys
}

fn api_key(t: &mut Table<'_>) -> Option<ApiKey> {
    t.ask("max_in_flight");
    let max_in_flight = t.given("max_in_flight").then(|| t.count("max_in_flight", 32, 1..=65_536));
    key_source(t).map(|source| ApiKey { source, max_in_flight })
}

fn key_source(t: &mut Table<'_>) -> Option<KeySource> {
    let env = t.optional("env", |text| identifier(text).map(KeySource::Env));
    let file = t.optional("file", |text| match text {
        "" => Err("may not be empty; write the key file's path".to_owned()),
        path => Ok(KeySource::File(PathBuf::from(path))),
    });
    let credential = t.optional("credential", |text| identifier(text).map(KeySource::Credential));
    if t.given("value") {
        t.ask("value");
        t.fault("value", NO_KEY_HERE);
        return None;
    }
    let mut sources = [env, file, credential].into_iter().flatten();
    let given = ["env", "file", "credential"].iter().filter(|name| t.given(name)).count();
    if given != 1 {
        t.fault_here(format!("has {given} sources; write exactly one of env, file and credential"));
    }
    sources.next()
}

/// The name of a variable or credential. The text is not repeated: it may be a key in the wrong place.
fn identifier(text: &str) -> Result<String, String> {
    let fits =
        !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be a name of letters, digits and \"_\", not the key itself".to_owned())
    }
}

fn uplink_name(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits { Ok(text.to_owned()) } else { Err("must be 1 to 64 letters, digits, \"-\", \"_\" or \".\"".to_owned()) }
}

/// What an uplink's address looks like.
const EXAMPLE: &str = "https://api.example/v1";
/// What people copy with an address, and the gateway adds by itself.
const ENDPOINTS: [&str; 7] =
    ["/chat/completions", "/completions", "/embeddings", "/responses", "/models", "/api/chat", "/api/generate"];

/// An address of an uplink or a local model server, without a trailing slash.
pub(super) fn http_url(text: &str, example: &str) -> Result<String, String> {
    let hint = format!("write one such as {}", quoted(example));
    // Repeating an address with a password or a key in it would print that.
    let shown = if text.contains(['@', '?', '#']) { "what stands here".to_owned() } else { quoted(text) };
    let uri: hyper::Uri = text.parse().map_err(|_| format!("{shown} is not a URL; {hint}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(format!("{shown} does not begin with http:// or https://; {hint}"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!("a URL here holds no user or password; keys belong in api_keys; {hint}"));
    }
    if uri.query().is_some() || text.contains('#') {
        return Err(format!("a URL here has neither ? nor #; a key belongs in api_keys; {hint}"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("{shown} must have a host; {hint}"));
    }
    let with_port = uri.authority().is_some_and(|authority| authority.host().len() < authority.as_str().len());
    if with_port && uri.port_u16().is_none() {
        return Err(format!("{shown} has no port between 0 and 65535 after its host; {hint}"));
    }
    let address = text.trim_end_matches('/');
    match ENDPOINTS.iter().find(|endpoint| address.ends_with(**endpoint)) {
        Some(endpoint) => Err(format!("{shown} is where one kind of request goes; leave {endpoint} out; {hint}")),
        None => Ok(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_lose_their_last_slash() {
        for good in ["https://api.holysheep.ai/v1", "http://127.0.0.1:8089", "http://[::1]:80/v1/", "http://box"] {
            assert_eq!(http_url(good, EXAMPLE).as_deref(), Ok(good.trim_end_matches('/')));
        }
        let bad = [
            "",
            "api.example",
            "ftp://x",
            "http://",
            "https:///v1",
            "http://x:99999",
            "http://x?a=b",
            "http://a b",
            "/v1",
            "https://api.example/v1/chat/completions",
            "http://127.0.0.1:11434/api/chat/",
        ];
        for text in bad {
            assert!(http_url(text, EXAMPLE).is_err(), "{text}");
        }
        for secret in
            ["user:secret@box/v1", "http://u:secret@box", "http://box?key=secret", "box#secret", "http://a b@secret"]
        {
            let said = http_url(secret, EXAMPLE).unwrap_err();
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
