//! T8: faults of the network in each phase of an attempt, row by row as the table of what an attempt's end means.
//!
//! The real daemon and an uplink of the rig stand in two network namespaces; rules on the line between them lose
//! packets. Each row stores a picture, sees the fault felt, heals the line and reads the record.

use std::sync::Arc;

use holdfast::plant::Fault;
use serde_json::Value;

use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::config::{QUICK_BREAKER, QUICK_DRAIN, config};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::network::{Line, NAME};
use crate::parts::uplink::{Answer, Uplink, own_certificate};
use crate::parts::{Chance, http, needs, needs_root, until};

pub const CASE: Case = Case {
    id: "T8",
    what: "network faults in each phase of an attempt",
    faults: &[Planted::In(Fault::RetryOnTimeout)],
    run,
};

/// Where the fault is made.
#[derive(Clone, Copy)]
enum Make {
    /// A command at one end of the line: `gateway` or `uplink`.
    Line(&'static str, &'static str),
    /// The uplink itself, at the next request.
    Uplink(Answer),
}

/// What has to come of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Nothing left: queued, no attempt counted; sent once when the line is healed.
    NotSent,
    /// The body was under way: at most one whole send without a label, a second only with one.
    Begun,
    /// Sent, answer lost: sent again once, labelled before; answered.
    Resent,
    /// The same, and the second answer is lost too: a dead letter that says so.
    LostTwice,
    /// Sent, answer lost, and never sent again: a dead letter that says so.
    Held,
    /// Slow, but whole: one send, no label.
    Slow,
}

#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    make: Make,
    expect: Expect,
    /// Over TLS.
    tls: bool,
    /// Bytes of the uplink's answer.
    answer: usize,
}

const fn row(name: &'static str, make: Make, expect: Expect) -> Row {
    Row { name, make, expect, tls: false, answer: 20 }
}

const fn tls(row: Row) -> Row {
    Row { tls: true, ..row }
}

const fn long_answer(row: Row) -> Row {
    Row { answer: 200_000, ..row }
}

/// `connbytes` lets the handshake and the head pass and loses what comes after.
const ROWS: &[Row] = &[
    // A lost answer first: it is the promise that costs money.
    row("response: the answer is dropped", ANSWER_DROPPED, Expect::Resent),
    tls(row("TLS: the server's hello is dropped", Make::Line("uplink", HELLO_DROPPED), Expect::NotSent)),
    row(
        "connect: refused",
        Make::Line("uplink", "iptables -A INPUT -p tcp -j REJECT --reject-with tcp-reset"),
        Expect::NotSent,
    ),
    row("request: the upload stalls", Make::Line("gateway", UPLOAD_STALLS), Expect::Begun),
    row(
        "DNS: questions are dropped",
        Make::Line("gateway", "iptables -A OUTPUT -p udp --dport 53 -j DROP"),
        Expect::NotSent,
    ),
    row("response: the end comes before a status", Make::Uplink(Answer::Nothing), Expect::Resent),
    row("connect: dropped", Make::Line("uplink", "iptables -A INPUT -p tcp --syn -j DROP"), Expect::NotSent),
    long_answer(row("response: cut short on the line", Make::Line("uplink", ANSWER_STALLS), Expect::Resent)),
    row(
        "slow line",
        Make::Line("gateway", "tc qdisc add dev line root tbf rate 4mbit burst 16k latency 400ms"),
        Expect::Slow,
    ),
    tls(row("TLS: reset after the client's hello", Make::Line("gateway", HELLO_RESET), Expect::NotSent)),
    row("response: both answers are dropped", ANSWER_DROPPED, Expect::LostTwice),
    row(
        "DNS: questions are refused",
        Make::Line("gateway", "iptables -A OUTPUT -p udp --dport 53 -j REJECT"),
        Expect::NotSent,
    ),
    row(
        "connect: host unreachable",
        Make::Line("gateway", "iptables -A OUTPUT -p tcp -j REJECT --reject-with icmp-host-unreachable"),
        Expect::NotSent,
    ),
    row("connect: the link is down", Make::Line("uplink", "ip link set line down"), Expect::NotSent),
    row("request: reset in the middle of the upload", Make::Line("gateway", UPLOAD_RESET), Expect::Begun),
    row("response: silence", Make::Uplink(Answer::Silence), Expect::Resent),
    row("response: cut short", Make::Uplink(Answer::Half), Expect::Resent),
    row("response: a gateway's 502 after the body was out", Make::Uplink(Answer::Status(502)), Expect::Resent),
    tls(row("response over TLS: the end comes before a status", Make::Uplink(Answer::Nothing), Expect::Resent)),
    tls(row("response over TLS: silence", Make::Uplink(Answer::Silence), Expect::Resent)),
    tls(row(
        "connect for TLS: dropped",
        Make::Line("uplink", "iptables -A INPUT -p tcp --syn -j DROP"),
        Expect::NotSent,
    )),
];

/// Rows for a gateway with `on_unknown = "hold"`.
const HELD: &[Row] = &[
    row("hold: the answer is dropped", ANSWER_DROPPED, Expect::Held),
    row("hold: the end comes before a status", Make::Uplink(Answer::Nothing), Expect::Held),
    row(
        "hold: connect refused",
        Make::Line("uplink", "iptables -A INPUT -p tcp -j REJECT --reject-with tcp-reset"),
        Expect::NotSent,
    ),
    row("hold: cut short", Make::Uplink(Answer::Half), Expect::Held),
];

/// The bytes are `HTTP/1.1 200`; a probe's answer is a 201 and passes.
const ANSWER_DROPPED: Make = Make::Line(
    "uplink",
    "iptables -A OUTPUT -p tcp -m string --hex-string |485454502f312e3120323030| --algo bm -j DROP",
);
const HELLO_DROPPED: &str = "iptables -A OUTPUT -p tcp -m string --hex-string |160303| --algo bm --to 80 -j DROP";
const HELLO_RESET: &str =
    "iptables -A OUTPUT -p tcp -m string --hex-string |160301| --algo bm --to 80 -j REJECT --reject-with tcp-reset";
const UPLOAD_STALLS: &str =
    "iptables -A OUTPUT -p tcp -m connbytes --connbytes 65536: --connbytes-dir original --connbytes-mode bytes -j DROP";
const UPLOAD_RESET: &str = "iptables -A OUTPUT -p tcp -m connbytes --connbytes 65536: --connbytes-dir original --connbytes-mode bytes -j REJECT --reject-with tcp-reset";
const ANSWER_STALLS: &str =
    "iptables -A OUTPUT -p tcp -m connbytes --connbytes 65536: --connbytes-dir reply --connbytes-mode bytes -j DROP";

const PLAIN_PORT: u16 = 8080;
const TLS_PORT: u16 = 8443;

fn run(effort: &Effort) -> Outcome {
    let ready = needs(&["ip", "iptables", "tc"], "iproute2 iptables").and_then(|()| needs_root());
    if let Err(missing) = ready {
        return missing;
    }
    let rounds = effort.pick(1, 600 / (ROWS.len() + HELD.len()) as u64);
    let (plain, over_tls): (Vec<_>, Vec<_>) = ROWS.iter().partition(|row| !row.tls);
    let half = plain.len().div_ceil(2);
    // Each list has a line and a daemon of its own; the lists run side by side, because they mostly wait.
    let lists = [plain[..half].to_vec(), plain[half..].to_vec(), over_tls, HELD.iter().collect()];
    let seed = effort.seed;
    let workers: Vec<_> = lists
        .into_iter()
        .enumerate()
        .map(|(number, rows)| std::thread::spawn(move || Bench::new(number, rows[0]).all(&rows, rounds, seed)))
        .collect();
    // All of them, before any is judged: each removes its own line.
    let ended: Vec<_> = workers.into_iter().map(std::thread::JoinHandle::join).collect();
    let mut runs = 0;
    for result in ended {
        match result.unwrap() {
            Ok(count) => runs += count,
            Err(broken) => return Outcome::Broken(format!("{broken}; --seed {seed}")),
        }
    }
    Outcome::held(runs, "runs", "DNS, connect, TLS, request and response; dropped, refused, cut, slow")
}

/// One line with a daemon and an uplink.
struct Bench {
    gateway: Arc<Gateway>,
    uplink: Arc<Uplink>,
    line: Line,
    _ca: tempfile::TempDir,
}

impl Bench {
    fn new(number: usize, first: &Row) -> Bench {
        let line = Line::new(number).unwrap();
        line.serve_names();
        let (pem, server) = own_certificate(NAME);
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, pem).unwrap();
        let (address, server) = if first.tls {
            (format!("https://{NAME}:{TLS_PORT}/v1"), Some(server))
        } else {
            (format!("http://{NAME}:{PLAIN_PORT}/v1"), None)
        };
        let port = if first.tls { TLS_PORT } else { PLAIN_PORT };
        let uplink = Uplink::serve(line.listen(port), server);
        let hold = if first.name.starts_with("hold") { "hold" } else { "resend" };
        let config = settings(&address, ca_file.to_str().unwrap(), hold);
        let gateway = Arc::new(Gateway::start(Setup { config, environment: Vec::new(), wrap: line.wrap() }));
        Bench { gateway, uplink, line, _ca: folder }
    }

    fn all(&self, rows: &[&'static Row], rounds: u64, seed: u64) -> Result<u64, String> {
        let mut chance = Chance(seed | 1);
        for round in 0..rounds {
            for row in rows {
                let bytes = 150_000 + chance.below(300_000) as usize;
                self.one(row, &format!("{} {round}", row.name), bytes)
                    .map_err(|what| format!("{}: {what}", row.name))?;
            }
        }
        Ok(rounds * rows.len() as u64)
    }

    fn one(&self, row: &Row, user: &str, bytes: usize) -> Result<(), String> {
        self.line.heal()?;
        self.uplink.set(Answer::Text(row.answer));
        if !self.gateway.wait_available(true) {
            return Err(format!("the uplink does not come back: {}", self.gateway.uplink()));
        }
        self.earn(row)?;
        self.watch_label();
        self.make(row, user)?;
        let id = self.gateway.store(&http::picture(user, bytes))?;
        let felt = self.felt(row, user, &id);
        // The second answer is lost with the rule still there.
        let record = if row.expect == Expect::LostTwice { Some(self.gateway.finished(&id, 40)) } else { None };
        self.line.heal()?;
        self.uplink.set(Answer::Text(row.answer));
        felt?;
        let record = record.unwrap_or_else(|| self.gateway.finished(&id, 40));
        self.judge(row, user, &record)
    }

    /// A second send has to be earned by ten successes.
    fn earn(&self, row: &Row) -> Result<(), String> {
        if matches!(row.expect, Expect::NotSent | Expect::Held | Expect::Slow) {
            return Ok(());
        }
        let ids = (0..10).map(|_| self.gateway.store(&http::chat("earns"))).collect::<Result<Vec<_>, _>>()?;
        let unanswered = ids.iter().find(|id| self.gateway.finished(id, 30)["state"] != "answered");
        unanswered.map_or(Ok(()), |id| Err(format!("on a sound line: {}", self.gateway.record(id))))
    }

    fn make(&self, row: &Row, user: &str) -> Result<(), String> {
        match row.make {
            Make::Line(end, command) => self.line.run(end, command),
            Make::Uplink(answer) => {
                self.uplink.set_once(user, answer);
                Ok(())
            }
        }
    }

    /// Before each answer the uplink asks the gateway whether the request's record carries the label.
    fn watch_label(&self) {
        // The uplink outlives the run: it must not keep the daemon alive.
        let gateway = Arc::downgrade(&self.gateway);
        self.uplink.ask_label(move || gateway.upgrade().is_some_and(|gateway| gateway.labels_what_it_sends()));
    }

    /// Waits until the fault has done its work, and sees that it did no other.
    fn felt(&self, row: &Row, user: &str, id: &str) -> Result<(), String> {
        let what = match row.expect {
            Expect::NotSent => {
                if !self.gateway.wait_available(false) {
                    return Err("the uplink is held for available".to_owned());
                }
                // An attempt may still be waiting for its time-out.
                let kept = until(15, || {
                    let record = self.gateway.record(id);
                    let untouched = record["attempts"] == 0 && record["maybe_billed"] == false;
                    (record["state"] == "queued" && untouched).then_some(())
                });
                return kept.ok_or_else(|| format!("nothing was sent, and yet: {}", self.gateway.record(id)));
            }
            Expect::Slow => return Ok(()),
            Expect::Begun => until(30, || {
                let record = self.gateway.record(id);
                (record["attempts"].as_u64() > Some(0) || !self.uplink.sent(user).is_empty()).then_some(())
            }),
            Expect::Resent | Expect::Held | Expect::LostTwice => until(30, || {
                let record = self.gateway.record(id);
                let known = record["maybe_billed"] == true || record["state"] == "dead";
                (known || self.uplink.sent(user).len() > 1).then_some(())
            }),
        };
        what.ok_or_else(|| format!("nobody noticed: {}", self.gateway.record(id)))
    }

    fn judge(&self, row: &Row, user: &str, record: &Value) -> Result<(), String> {
        let sent = self.uplink.sent(user);
        let labels: Vec<bool> = sent.iter().map(|sent| sent.labelled).collect();
        let said = format!("{} sends, labelled {labels:?}, record {record}", sent.len());
        if sent.iter().any(|later| later.key != sent[0].key || later.key.is_empty()) {
            return Err(format!("another idempotency key on a resend: {said}"));
        }
        let (state, labels) = (record["state"].as_str().unwrap_or("none"), labels.as_slice());
        let dead = state == "dead" && record["reason"] == "unknown";
        let holds = match row.expect {
            Expect::NotSent | Expect::Slow => state == "answered" && labels == [false],
            // What the kernel still held of the first may arrive after the second.
            Expect::Begun => state == "answered" && matches!(labels, [_] | [false, true] | [true, _]),
            Expect::Resent => state == "answered" && labels == [false, true],
            Expect::LostTwice => dead && labels == [false, true],
            Expect::Held => dead && labels == [false],
        };
        let owned_up = sent.len() < 2 || record["maybe_billed"] == true;
        if holds && owned_up { Ok(()) } else { Err(said) }
    }
}

/// Every wait as short as a slow machine allows.
fn settings(address: &str, ca_file: &str, hold: &str) -> String {
    let uplink = [
        &format!("ca_file = \"{ca_file}\""),
        "probe = { interval = \"100ms\", timeout = \"500ms\", fall = 2, rise = 1 }",
        "timeouts = { connect = \"500ms\", first_byte = \"900ms\", idle = \"900ms\", total = \"20s\" }",
        QUICK_BREAKER,
    ];
    // The last section of the drain's lines is that of retries.
    config(address, &uplink, &[QUICK_DRAIN, &format!("on_unknown = \"{hold}\"")])
}
