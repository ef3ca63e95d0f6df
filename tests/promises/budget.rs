//! `[budget] usd_per_day`: what the uplink bills never exceeds the cap, whoever asks and whatever is killed.
//!
//! The simulated uplink keeps its own books: each request that reaches it is billed there, answered or not.
//! `HOLDFAST_BUDGET_SCHEDULES=200` for a long run of kill -9; `HOLDFAST_BUDGET_SEED` replays its seed.

use std::path::PathBuf;
use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode, Simulator};
use holdfast::clock;
use serde_json::{Value, json};

use crate::support::{Ask, Bench, Settings, rounds, until};

/// US dollars for a million tokens in and out of the priced model.
const USD_IN: f64 = 100.0;
const USD_OUT: f64 = 200_000.0;
/// Words of an answer, all of which are used: one answer costs about a dollar, nearly all of it for these.
const WORDS: u64 = 5;

fn capped(usd_per_day: f64) -> Settings {
    let extra = format!(
        "[budget]\nusd_per_day = {usd_per_day:.1}\n[[model]]\nname = \"gpt-4o\"\nusd_per_mtok_in = {USD_IN:.1}\n\
         usd_per_mtok_out = {USD_OUT:.1}\n"
    );
    Settings { extra, patient: true, ..Settings::without_local() }
}

/// What the uplink bills, by its own books.
fn billed(uplink: &Simulator) -> f64 {
    let cost = |(i, o): (u64, u64)| (i as f64 * USD_IN + o as f64 * USD_OUT) / 1e6;
    uplink.log().iter().map(|entry| cost((entry.prompt_tokens, entry.completion_tokens))).sum()
}

fn chat(user: &str, stream: bool) -> Ask {
    let body = json!({
        "model": "gpt-4o", "max_tokens": WORDS, "stream": stream, "messages": [{"role": "user", "content": user}]
    });
    Ask::post("/v1/chat/completions", body.to_string())
}

fn ask(user: &str) -> Ask {
    chat(user, false)
}

async fn budget(bench: &Bench) -> Value {
    bench.daemon.status().await["budget"].clone()
}

fn usd(budget: &Value, field: &str) -> f64 {
    budget[field].as_f64().unwrap_or_else(|| panic!("no {field} in {budget}"))
}

/// Another cap from the next start on.
fn set_cap(bench: &Bench, from: f64, to: f64) {
    let path = bench.daemon.folder().join("holdfast.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, after) = (format!("usd_per_day = {from:.1}"), format!("usd_per_day = {to:.1}"));
    assert!(text.contains(&before));
    std::fs::write(&path, text.replace(&before, &after)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_once_spend_the_cap_and_no_cent_more() {
    let bench = Bench::with(capped(20.0)).await;
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..32 {
        let socket = bench.daemon.socket();
        callers.spawn(async move {
            let mut answered = 0;
            for m in 0..2 {
                let asked = chat(&format!("caller {n} asks {m}"), m == 1).offline("fail");
                let reply = asked.send_to(&socket).await.unwrap();
                match reply.status {
                    200 => answered += 1,
                    429 => {
                        let error = &reply.json()["error"];
                        assert_eq!(error["code"], "budget_spent", "{error}");
                        let message = error["message"].as_str().unwrap();
                        assert!(message.contains("00:00 UTC") && message.contains("usd_per_day"), "{message}");
                        assert_eq!(reply.header("x-should-retry"), "false");
                    }
                    status => panic!("{status}: {}", reply.text()),
                }
            }
            answered
        });
    }
    let answered: usize = callers.join_all().await.into_iter().sum();
    let (spent, budget) = (billed(&bench.uplink), budget(&bench).await);
    assert!(spent <= 20.0, "{spent} USD billed");
    // What is left is less than the most that one request can cost.
    assert!(spent > 14.0 && answered >= 14, "{spent} USD billed for {answered} answers");
    assert!((usd(&budget, "spent_usd") - spent).abs() < 1e-6 && usd(&budget, "reserved_usd") == 0.0, "{budget}");
    assert!(budget["paused"].as_str().unwrap().contains("usd_per_day"), "{budget}");
    let health = bench.daemon.get("/v1/health").await.json();
    assert!(health["budget"].as_str().unwrap().contains("00:00 UTC"), "{health}");
    let metrics = bench.daemon.get("/metrics").await.text();
    assert!(metrics.contains("holdfast_budget_usd 20"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_waits_at_the_cap_loses_no_attempt_and_goes_on_when_it_is_raised() {
    let mut bench = Bench::offline(capped(5.0)).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(bench.daemon.send(ask(&format!("stored {n}")).header("prefer", "respond-async")).await.id());
    }
    bench.uplink.set_faults(Faults::default()).await;
    until("the budget to be spent", 60, || async { budget(&bench).await["paused"].is_string().then_some(()) }).await;
    let spent = billed(&bench.uplink);
    assert!((2.0..=5.0).contains(&spent), "{spent} USD billed");
    let waiting = bench.daemon.backlog().await;
    assert!(waiting >= 7, "{waiting} wait");
    // A restart keeps it so, and a cheaper request that fits still goes.
    assert!(bench.daemon.stop().await.success());
    bench.daemon.restart().await;
    bench.wait_online().await;
    assert!(budget(&bench).await["paused"].is_string());
    assert!(usd(&budget(&bench).await, "spent_usd") <= spent + 1e-6, "a clean stop gives back what was not used");
    let dead = ask("one more").offline("fail");
    assert_eq!(bench.daemon.send(dead).await.status, 429);
    assert!(bench.daemon.stop().await.success());
    set_cap(&bench, 5.0, 100.0);
    bench.daemon.restart().await;
    until("the backlog to drain", 60, || async { (bench.daemon.backlog().await == 0).then_some(()) }).await;
    for id in &ids {
        let record = bench.daemon.record(id).await;
        assert_eq!((&record["state"], &record["attempts"]), (&"answered".into(), &1.into()), "{record}");
    }
    assert!(budget(&bench).await["paused"].is_null());
    ledger_agrees(&bench).await;
}

/// Days, rows and the tool say what the uplink's books say.
async fn ledger_agrees(bench: &Bench) {
    let spend = bench.daemon.get("/holdfast/v1/spend?days=3").await.json();
    let today = &spend["days"][0];
    assert!((usd(today, "usd") - billed(&bench.uplink)).abs() < 1e-6, "{today}");
    let row = &today["rows"][0];
    assert_eq!((&row["uplink"], &row["model"]), (&"sim".into(), &"gpt-4o".into()), "{row}");
    assert!(row["source"].as_str().unwrap().contains("uid:"), "{row}");
    let (code, text) = bench.daemon.tool(&["spend", "--days", "2"]).await;
    assert!(code == 0 && text.contains("gpt-4o") && text.contains("UPLINK"), "{text}");
    assert_eq!(bench.daemon.get("/holdfast/v1/spend?days=x").await.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_costs_nothing_is_given_back_and_what_nobody_knows_is_not() {
    let bench = Bench::with(capped(20.0)).await;
    bench.uplink.set_faults(crate::support::refusing(400)).await;
    assert_eq!(bench.daemon.send(ask("refused").offline("fail")).await.status, 400);
    let now = budget(&bench).await;
    assert_eq!((usd(&now, "spent_usd"), usd(&now, "reserved_usd")), (0.0, 0.0));
    bench.uplink.set_faults(Faults { answer: Some("{\"choices\":[]}".to_owned()), ..Faults::default() }).await;
    assert_eq!(bench.daemon.send(ask("no usage").offline("fail")).await.status, 200);
    let now = budget(&bench).await;
    assert!(usd(&now, "spent_usd") > 1.0 && usd(&now, "reserved_usd") == 0.0, "{now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cap_nothing_is_written_while_requests_are_sent() {
    let bench = Bench::with(Settings::without_local()).await;
    let escrow = bench.daemon.data().join("money/escrow");
    let before = std::fs::metadata(&escrow).unwrap().modified().unwrap();
    for n in 0..20 {
        assert_eq!(bench.daemon.send(ask(&format!("free {n}"))).await.status, 200);
    }
    assert_eq!(std::fs::metadata(&escrow).unwrap().modified().unwrap(), before);
    let now = budget(&bench).await;
    assert!(now["usd_per_day"].is_null() && usd(&now, "spent_usd") > 0.0, "{now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_purse_never_stops_the_start_and_spends_nothing_more_today() {
    let mut bench = Bench::with(capped(20.0)).await;
    assert_eq!(bench.daemon.send(ask("one").offline("fail")).await.status, 200);
    assert!(bench.daemon.stop().await.success());
    let money = bench.daemon.data().join("money");
    std::fs::write(money.join("escrow"), b"worn out").unwrap();
    bench.daemon.restart().await;
    bench.wait_online().await;
    assert_eq!(bench.daemon.send(ask("two").offline("fail")).await.status, 429);
    assert!(money.join("escrow.damaged").exists());
    let log = std::fs::read_to_string(bench.daemon.folder().join("daemon.log")).unwrap();
    assert!(log.contains("today's budget counts as spent"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_money_there_are_the_local_model_tickets_and_what_is_free() {
    let free = "[[model]]\nname = \"gpt-4o-mini\"\nusd_per_mtok_in = 0.0\nusd_per_mtok_out = 0.0\n";
    let mut settings = Settings { local: None, ..capped(0.5) };
    settings.extra += free;
    let bench = Bench::with(settings).await;
    for stream in [false, true] {
        let local = bench.daemon.send(chat("from here", stream).offline("local")).await;
        assert_eq!(local.status, 200, "{}", local.text());
        assert!(local.header("x-holdfast-route").starts_with("local:"), "{local:?}");
    }
    let stored = bench.daemon.send(ask("for tomorrow").offline("queue").header("x-stainless-read-timeout", "1")).await;
    stored.assert_error(503, "request_queued");
    assert!(stored.text().contains("00:00 UTC"), "{}", stored.text());
    let keyed = ask("with a key").header("idempotency-key", "k1").offline("fail");
    bench.daemon.send(keyed).await.assert_error(429, "budget_spent");
    let free = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "free"}]});
    let reply = bench.daemon.send(Ask::post("/v1/chat/completions", free.to_string())).await;
    assert_eq!((reply.status, reply.header("x-holdfast-route")), (200, "uplink:sim"));
    let unknown = Ask::post("/v1/responses", json!({"model": "gpt-4o", "input": "x"}).to_string());
    bench.daemon.send(unknown).await.assert_error(429, "budget_spent");
    assert_eq!(bench.daemon.get("/v1/models").await.status, 200);
    assert!(bench.uplink.log().iter().all(|entry| entry.model.as_deref() == Some("gpt-4o-mini")));
}

#[tokio::test]
async fn without_money_and_local_model_each_is_told_the_nearest_reason() {
    let bench = Bench::with(capped(0.5)).await;
    bench.daemon.send(ask("here alone").offline("local")).await.assert_error(429, "budget_spent");
    let hurried = |user| ask(user).offline("queue").header("x-stainless-read-timeout", "1");
    let stored = bench.daemon.send(hurried("for tomorrow")).await;
    stored.assert_error(503, "request_queued");
    assert!(stored.text().contains("USD"), "{}", stored.text());
    // Without an uplink money is not what is missing first.
    bench.outage(Faults::failing(Mode::Refuse)).await;
    let stored = bench.daemon.send(hurried("for the uplink")).await;
    stored.assert_error(503, "request_queued");
    assert!(!stored.text().contains("USD") && stored.text().contains("no uplink"), "{}", stored.text());
}

#[tokio::test]
async fn a_small_cap_is_said_as_it_is_and_nothing_is_said_of_max_tokens_that_is_not_so() {
    let settings = capped(0.5);
    let extra = settings.extra.replace("usd_per_day = 0.5", "usd_per_day = 0.001");
    let bench = Bench::with(Settings { extra, ..settings }).await;
    let refused = bench.daemon.send(ask("bounded").offline("fail")).await;
    refused.assert_error(429, "budget_spent");
    let words = refused.text();
    assert!(words.contains("0.00 of 0.001 USD") && !words.contains("without max_tokens"), "{words}");
    let (_, shown) = bench.daemon.tool(&["status"]).await;
    assert!(shown.contains("cap 0.001 USD"), "{shown}");
}

/// xorshift: the same schedules again from the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Asks until the daemon is gone; every third request is stored first.
async fn caller(socket: PathBuf, name: String) {
    for n in 0..20 {
        let asked = chat(&format!("{name} {n}"), n % 3 == 2);
        let asked = if n % 3 == 0 { asked.header("prefer", "respond-async") } else { asked.offline("fail") };
        if asked.send_to(&socket).await.is_err() {
            return;
        }
    }
}

/// One life of the daemon: callers, then a kill in the middle of them.
async fn live_and_die(bench: &mut Bench, name: &str, life_ms: u64) {
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..6 {
        callers.spawn(caller(bench.daemon.socket(), format!("{name} caller {n}")));
    }
    tokio::time::sleep(Duration::from_millis(life_ms)).await;
    bench.daemon.kill().await;
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_never_spends_more_than_the_cap() {
    let seed = rounds("HOLDFAST_BUDGET_SEED", 0x0b1d_5eed) as u64;
    let schedules = rounds("HOLDFAST_BUDGET_SCHEDULES", 12);
    let (mut chance, mut spent_up, mut kills, mut nearest) = (Chance(seed | 1), 0, 0, 0.0_f64);
    let first_day = clock::utc_day();
    let mut bench = Bench::with(capped(1.0)).await;
    let mut cap = 1.0;
    for schedule in 0..schedules {
        // A new purse for each schedule: the cap differs, the folder's is gone, the uplink's books are empty.
        assert!(bench.daemon.stop().await.success());
        let next = 8.0 + chance.below(60) as f64;
        set_cap(&bench, cap, next);
        cap = next;
        std::fs::remove_dir_all(bench.daemon.data()).unwrap();
        bench.uplink.clear_log();
        bench.daemon.restart().await;
        bench.wait_online().await;
        let (delay_ms, fail) = match chance.below(4) {
            0 => (30, Mode::Reset),
            1 => (0, Mode::None),
            _ => (chance.below(60), Mode::None),
        };
        bench.uplink.set_faults(Faults { delay_ms, fail, ..Faults::default() }).await;
        for life in 0..=chance.below(3) {
            live_and_die(&mut bench, &format!("schedule {schedule} life {life}"), chance.below(400)).await;
            kills += 1;
            bench.daemon.restart().await;
            bench.uplink.set_faults(Faults { delay_ms, ..Faults::default() }).await;
        }
        bench.wait_online().await;
        let budget = budget(&bench).await;
        let billed = billed(&bench.uplink);
        // Over midnight there are two caps to spend.
        let allowed = if clock::utc_day() == first_day { cap } else { 2.0 * cap };
        assert!(billed <= allowed, "schedule {schedule}, seed {seed}: {billed} USD billed of {cap}: {budget}");
        nearest = nearest.max(billed / cap);
        spent_up += usize::from(budget["paused"].is_string());
    }
    println!(
        "{schedules} schedules, {kills} kills, seed {seed}: the cap was reached in {spent_up}; at most {:.1} % of it billed",
        nearest * 100.0
    );
}

/// A prompt template is the service's text, an upload is no JSON, a batch of the uplink's is out of sight.
#[tokio::test]
async fn under_a_cap_nothing_leaves_that_is_bounded_by_a_guess() {
    let bench = Bench::with(capped(5.0)).await;
    let sent = || {
        bench.uplink.log().iter().filter(|entry| entry.path.starts_with("/v1/") && entry.path != "/v1/models").count()
    };
    let template = json!({"model": "gpt-4o", "prompt": {"id": "pmpt_1"}, "max_output_tokens": 1}).to_string();
    bench.daemon.send(Ask::post("/v1/responses", template)).await.assert_error(429, "budget_spent");
    let form = "--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.ogg\"\r\n\r\nOggS\r\n--cut--\r\n";
    let upload = Ask::form("/v1/audio/transcriptions", form.to_owned(), "multipart/form-data; boundary=cut");
    bench.daemon.send(upload).await.assert_error(429, "budget_spent");
    let batch = json!({"input_file_id": "file-theirs", "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    bench.daemon.send(Ask::post("/v1/batches", batch.to_string())).await.assert_error(403, "unbounded_cost");
    assert_eq!(sent(), 0);
}
