//! The ladder to an uplink, rung by rung: address, name, connection, TLS, clock, who answers, credential, model.
//!
//! Says which rung breaks and what to do about it, without spending a token; changes nothing and judges no uplink's health.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::header::{DATE, HeaderMap, LOCATION};
use hyper::{Method, StatusCode, Uri};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::classify;
use super::cloud::{Call, Cloud, SendError, Whole};
use super::tls::client_config;
use crate::body::Body;
use crate::clock;
use crate::control::event::{Block, Fault, KeyIndex, Outcome};
use crate::control::types::words;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// The longest that the list of models is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Largest list of models that is read.
const LIST_BYTES_MAX: usize = 4 << 20;
/// A clock that differs from the uplink's by more deserves a word.
const SKEW_MAX: Duration = Duration::from_mins(5);
/// Models that are named where one is missing.
const EXAMPLES: usize = 5;
/// What is read of an answer on port 80.
const PAGE_BYTES_MAX: usize = 4096;

/// How a rung stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It holds.
    Ok,
    /// It breaks: what stands above it is not reached.
    Failed,
    /// It was not reached, is not used, or cannot be told without spending a token.
    Skipped,
}
words!(Standing { Ok => "ok", Failed => "failed", Skipped => "skipped" });

/// One rung.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// Such as `dns`.
    pub name: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found, and what to do where it breaks: one plain sentence.
    pub detail: String,
    /// How long it took.
    pub took_ms: u64,
}

/// All rungs in order.
const RUNGS: [&str; 8] = ["address", "dns", "tcp", "tls", "clock", "answer", "credential", "model"];

/// Rungs as they are climbed.
struct Climb(Vec<Rung>);

/// The climb ends here.
struct Ended;

impl Climb {
    fn note(&mut self, standing: Standing, detail: impl Into<String>, since: Instant) {
        let name = RUNGS.get(self.0.len()).copied().unwrap_or("more");
        let took_ms = clock::now().duration_since(since).as_millis() as u64;
        self.0.push(Rung { name, standing, detail: detail.into(), took_ms });
    }

    fn holds(&mut self, detail: impl Into<String>, since: Instant) {
        self.note(Standing::Ok, detail, since);
    }

    fn skipped(&mut self, detail: impl Into<String>) {
        self.note(Standing::Skipped, detail, clock::now());
    }

    fn fails(&mut self, detail: impl Into<String>, since: Instant) -> Ended {
        self.note(Standing::Failed, detail, since);
        Ended
    }

    /// All rungs; those above a broken one are not reached.
    fn end(mut self) -> Vec<Rung> {
        while self.0.len() < RUNGS.len() {
            self.skipped("not reached");
        }
        self.0
    }
}

/// Climbs. `models` are the names under which this uplink is asked for models. Takes as long as the uplink's own time-outs at
/// most, three times, and twice ten seconds.
pub async fn climb(cloud: &Cloud, models: &[String]) -> Vec<Rung> {
    let mut climb = Climb(Vec::with_capacity(RUNGS.len()));
    let _ = rungs(&mut climb, cloud, models).await;
    climb.end()
}

async fn rungs(climb: &mut Climb, cloud: &Cloud, models: &[String]) -> Result<(), Ended> {
    let uri: Uri = cloud.base().parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let limit = cloud.options().timeouts.connect;

    address(climb, &host).await?;
    let addresses = dns(climb, &host, port, limit).await?;
    let stream = tcp(climb, &addresses, limit).await?;
    if is_tls {
        tls(climb, cloud, &host, stream, limit).await?;
    } else {
        climb.skipped("not used: the address is http");
    }
    let begun = clock::now();
    if cloud.options().floor.is_above_clock() {
        let now = when(SystemTime::UNIX_EPOCH + Duration::from_millis(clock::unix_ms()));
        let detail = format!(
            "the clock here says {now}, which is before this program was made; nothing is sent over TLS until it is set"
        );
        return Err(climb.fails(detail, begun));
    }
    answer(climb, cloud, &host, models, begun).await
}

/// Whether this machine has an address that leads there. Only the kernel is asked; nothing is sent.
async fn address(climb: &mut Climb, host: &str) -> Result<(), Ended> {
    let begun = clock::now();
    // Names are not known yet: addresses that documentation is written with (RFC 5737, RFC 3849) stand for the rest of the world.
    let targets: Vec<IpAddr> = match host.parse() {
        Ok(address) => vec![address],
        Err(_) => vec![Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()],
    };
    for target in targets {
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        if socket.connect((target, 9)).await.is_ok()
            && let Ok(own) = socket.local_addr()
        {
            climb.holds(format!("this machine is {}", own.ip()), begun);
            return Ok(());
        }
    }
    if host == "localhost" {
        climb.holds("the uplink is this machine", begun);
        return Ok(());
    }
    Err(climb.fails("this machine has no address or no route: look at the cable, the modem and DHCP", begun))
}

async fn dns(climb: &mut Climb, host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Ended> {
    let begun = clock::now();
    if let Ok(address) = host.parse::<IpAddr>() {
        climb.skipped("not used: the uplink is given by its address");
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match timeout(limit, lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
            if found.is_empty() {
                return Err(climb.fails(format!("{host} has no address: is base_url right?"), begun));
            }
            let list: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
            climb.holds(format!("{host} is {}", list.join(", ")), begun);
            Ok(found)
        }
        Ok(Err(error)) => {
            let detail =
                format!("{host} cannot be resolved ({error}): look at /etc/resolv.conf, and whether base_url is right");
            Err(climb.fails(detail, begun))
        }
        Err(_) => {
            let detail = format!(
                "no name server answered for {host} within {} s: look at /etc/resolv.conf",
                limit.as_secs_f32()
            );
            Err(climb.fails(detail, begun))
        }
    }
}

async fn tcp(climb: &mut Climb, addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, Ended> {
    let begun = clock::now();
    let mut last = String::new();
    for address in addresses {
        // One of them answering is enough; together they get one time-out.
        let left = limit.saturating_sub(clock::now().duration_since(begun));
        match timeout(left, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                climb.holds(format!("connected to {address}"), begun);
                return Ok(stream);
            }
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer"),
        }
    }
    Err(climb.fails(format!("no connection ({last}): a firewall, or the uplink is down"), begun))
}

async fn tls(climb: &mut Climb, cloud: &Cloud, host: &str, stream: TcpStream, limit: Duration) -> Result<(), Ended> {
    let begun = clock::now();
    let (Ok(mut config), Ok(name)) =
        (client_config(cloud.options().ca_file.as_deref()), ServerName::try_from(host.to_owned()))
    else {
        return Err(climb.fails("TLS cannot be set up: look at ca_file and base_url", begun));
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let error = match timeout(limit, TlsConnector::from(Arc::new(config)).connect(name, stream)).await {
        Ok(Ok(_)) => {
            climb.holds(format!("the certificate is {host}'s and is trusted"), begun);
            return Ok(());
        }
        Ok(Err(error)) => error,
        Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut),
    };
    let now = when(SystemTime::UNIX_EPOCH + Duration::from_millis(clock::unix_ms()));
    if classify::connect_fault(&error) == Fault::Clock {
        let detail = format!("the certificate begins later than the clock here says ({now})");
        let _ = climb.fails(detail, begun);
        return Err(climb.fails("set the clock, or let it be set: timedatectl", clock::now()));
    }
    let _ = climb
        .fails(format!("no trusted connection ({error}): is something between, or does ca_file miss a root?"), begun);
    climb.note(Standing::Skipped, format!("it says {now}"), clock::now());
    let begun = clock::now();
    match page(host, limit).await {
        Some(what) => Err(climb.fails(what, begun)),
        None => Err(Ended),
    }
}

/// Whether somebody else answers on port 80 in this host's name: a page to log in to, as networks for guests have it.
async fn page(host: &str, limit: Duration) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect((host, 80)).await.ok()?;
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut said = Vec::new();
        stream.take(PAGE_BYTES_MAX as u64).read_to_end(&mut said).await.ok()?;
        Some(String::from_utf8_lossy(&said).into_owned())
    };
    let said = timeout(limit, ask).await.ok()??;
    let place = said.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("location:").map(str::to_owned));
    elsewhere(place?.trim(), host)
}

fn elsewhere(place: &str, host: &str) -> Option<String> {
    let uri: Uri = place.parse().ok()?;
    let other = uri.host().filter(|other| !other.eq_ignore_ascii_case(host))?;
    Some(format!(
        "a page at {other} answers in the uplink's place (a captive portal): log in to this network, or let the gateway through"
    ))
}

/// Everything above the connection is told by the list of models.
async fn answer(climb: &mut Climb, cloud: &Cloud, host: &str, models: &[String], begun: Instant) -> Result<(), Ended> {
    let asked = clock::now();
    let listed = list(cloud, 0, ANSWER_MAX).await;
    clock_rung(climb, listed.as_ref().ok(), begun);
    let whole = match listed {
        Ok(whole) => whole,
        Err(SendError { outcome: Outcome::Unreachable(Fault::NoKey) }) => {
            climb.skipped("not asked");
            return Err(climb.fails(cloud.missing_keys().unwrap_or("no key can be read"), asked));
        }
        Err(error) => return Err(climb.fails(format!("no answer over a connection that stands ({error})"), asked)),
    };
    let outcome = classify::outcome(whole.status, &whole.headers, &whole.body);
    who(climb, &whole, outcome, host, asked)?;
    let first = judged(&name_of(cloud, 0), whole.status, outcome);
    let verdicts = [vec![first], other_keys(cloud).await].concat();
    credential(climb, &verdicts, asked)?;
    model(climb, &whole.body, models)
}

async fn list(cloud: &Cloud, key: KeyIndex, limit: Duration) -> Result<Whole, SendError> {
    let call = Call {
        method: Method::GET,
        path: format!("/v1{}", cloud.options().probe_path),
        headers: HeaderMap::new(),
        body: Body::default().into(),
        on_out: None,
    };
    let sent = cloud.send_unless(call, key, std::future::pending::<()>());
    let listed = timeout(limit, async { sent.await?.whole(LIST_BYTES_MAX).await }).await;
    listed.unwrap_or(Err(SendError { outcome: Outcome::Unknown(Fault::Timeout) }))
}

/// What the uplink's own clock says of ours; off by minutes is worth a word and breaks nothing.
fn clock_rung(climb: &mut Climb, whole: Option<&Whole>, begun: Instant) {
    let theirs = whole.and_then(|whole| whole.headers.get(DATE)?.to_str().ok());
    let theirs = theirs.and_then(|date| httpdate::parse_http_date(date).ok());
    let ours = SystemTime::UNIX_EPOCH + Duration::from_millis(clock::unix_ms());
    let Some(theirs) = theirs else {
        return climb.holds(format!("it says {}", when(ours)), begun);
    };
    let off = ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).unwrap_or_default();
    if off > SKEW_MAX {
        let (ours, theirs) = (when(ours), when(theirs));
        climb.holds(format!("it says {ours}, the uplink's {theirs}: let it be set (timedatectl)"), begun);
    } else {
        climb.holds("it agrees with the uplink's", begun);
    }
}

/// The service itself, or a captive portal.
fn who(climb: &mut Climb, whole: &Whole, outcome: Outcome, host: &str, asked: Instant) -> Result<(), Ended> {
    let place = whole.headers.get(LOCATION).and_then(|place| place.to_str().ok());
    match outcome {
        Outcome::Unreachable(Fault::Redirect) => {
            let to = place.and_then(|place| elsewhere(place, host));
            let detail = to.unwrap_or_else(|| "the uplink sends elsewhere: is base_url right?".to_owned());
            Err(climb.fails(detail, asked))
        }
        Outcome::Unreachable(_) => {
            let detail = "a page for people answers in the uplink's place: log in to this network, or mend base_url";
            Err(climb.fails(detail, asked))
        }
        Outcome::Transient(_) | Outcome::Later { .. } | Outcome::Unknown(_) => {
            Err(climb.fails(format!("the service itself is in trouble ({}): wait", whole.status.as_u16()), asked))
        }
        _ => {
            climb.holds("the uplink itself answers", asked);
            Ok(())
        }
    }
}

/// What one key may do, and a sentence about it.
type Verdict = (Standing, String);

/// Where there is one only, nobody has to be told which.
fn name_of(cloud: &Cloud, key: KeyIndex) -> String {
    if cloud.keys().len() > 1 { cloud.key_name(key) } else { "the key".to_owned() }
}

/// The same of every key but the first, all within [`ANSWER_MAX`].
async fn other_keys(cloud: &Cloud) -> Vec<Verdict> {
    let begun = clock::now();
    let mut verdicts = Vec::new();
    for key in 1..cloud.keys().len() {
        let (name, left) = (name_of(cloud, key), ANSWER_MAX.saturating_sub(begun.elapsed()));
        verdicts.push(match list(cloud, key, left).await {
            Ok(whole) => judged(&name, whole.status, classify::outcome(whole.status, &whole.headers, &whole.body)),
            Err(error) => (Standing::Skipped, format!("{name} got no answer ({error})")),
        });
    }
    verdicts
}

fn judged(key: &str, status: StatusCode, outcome: Outcome) -> Verdict {
    let code = status.as_u16();
    match outcome {
        Outcome::Delivered => (Standing::Ok, format!("{key} may list models")),
        Outcome::Blocked(Block::Key) => {
            (Standing::Failed, format!("{key} is refused ({code}): put a valid one where api_keys says"))
        }
        Outcome::Blocked(Block::Quota) => {
            let what = format!("the account of {key} has no credit left ({code}): pay, or use another key");
            (Standing::Failed, what)
        }
        Outcome::RateLimited { .. } => (Standing::Skipped, format!("the service limits how often {key} may ask (429)")),
        _ if status == StatusCode::NOT_FOUND => {
            (Standing::Skipped, "this service lists no models, so only a request can tell".to_owned())
        }
        _ => (Standing::Skipped, format!("{key} may not list models ({code}), so only a request can tell")),
    }
}

/// The worst that is said of any key, of several all that is not well.
fn credential(climb: &mut Climb, verdicts: &[Verdict], asked: Instant) -> Result<(), Ended> {
    let of = |standing| {
        let said: Vec<&str> = verdicts.iter().filter(|(s, _)| *s == standing).map(|(_, said)| said.as_str()).collect();
        said.join("; ")
    };
    let (failed, skipped) = (of(Standing::Failed), of(Standing::Skipped));
    if !failed.is_empty() {
        return Err(climb.fails(failed, asked));
    }
    if !skipped.is_empty() {
        climb.skipped(skipped);
        return Err(Ended);
    }
    climb.holds(of(Standing::Ok), asked);
    Ok(())
}

#[derive(Deserialize)]
struct Listing {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    id: Value,
}

fn model(climb: &mut Climb, list: &Bytes, models: &[String]) -> Result<(), Ended> {
    let begun = clock::now();
    let Ok(list) = serde_json::from_slice::<Listing>(list) else {
        climb.skipped("the answer is no list of models");
        return Ok(());
    };
    let listed: Vec<&str> = list.data.iter().filter_map(|model| model.id.as_str()).collect();
    let missing: Vec<&str> = models.iter().map(String::as_str).filter(|model| !listed.contains(model)).collect();
    if models.is_empty() {
        climb.holds(format!("{} models are listed; the configuration names none", listed.len()), begun);
        return Ok(());
    }
    if missing.is_empty() {
        climb.holds(format!("{} listed", models.join(", ")), begun);
        return Ok(());
    }
    let examples = listed.iter().take(EXAMPLES).copied().collect::<Vec<_>>().join(", ");
    Err(climb.fails(format!("{} not listed there; listed are for example {examples}", missing.join(", ")), begun))
}

fn when(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_within_the_host_is_no_portal() {
        assert_eq!(elsewhere("https://api.example/v1", "api.example"), None);
        assert_eq!(elsewhere("/login", "api.example"), None);
        assert!(
            elsewhere("http://login.hotel.example/?from=x", "api.example").unwrap().contains("login.hotel.example")
        );
    }

    #[test]
    fn a_model_that_is_not_listed_is_named() {
        let list = Bytes::from_static(br#"{"data":[{"id":"a"},{"id":"b"},{"odd":1}]}"#);
        let climbed = |models: &[&str]| {
            let mut climb = Climb(Vec::new());
            let _ = model(&mut climb, &list, &models.iter().map(|&m| m.to_owned()).collect::<Vec<_>>());
            (climb.0[0].standing, climb.0[0].detail.clone())
        };
        assert_eq!(climbed(&["a", "b"]).0, Standing::Ok);
        assert_eq!(climbed(&[]).0, Standing::Ok);
        let (standing, detail) = climbed(&["a", "gpt-4.1"]);
        assert_eq!(
            (standing, detail.as_str()),
            (Standing::Failed, "gpt-4.1 not listed there; listed are for example a, b")
        );
    }
}
