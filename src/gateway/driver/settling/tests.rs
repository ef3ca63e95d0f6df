//! Endings that meet a salvage, a panic, a disk: each is on disk once, and holds up nobody.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::body::Body;
use crate::clock::Floor;
use crate::control::Settings;
use crate::control::drain::DrainSettings;
use crate::control::price::Prices;
use crate::control::retry::RetrySettings;
use crate::control::route::Strategy;
use crate::control::types::{Policy, Priority};
use crate::gateway::{Gateway, Parts};
use crate::money::{self, Money};
use crate::spool::record::NewRequest;
use crate::spool::{self, Spool};
use crate::telemetry::host::Board;
use crate::uplink::local::{Api, Local, Options, StewardSettings, Timeouts, Warm};

thread_local! {
    /// Panics to come; tasks of a test run on its own thread.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

pub(super) fn panic_if_planted() {
    let left = PANICS.get();
    PANICS.set(left.saturating_sub(1));
    assert_eq!(left, 0, "as planned");
}

fn driver() -> (tempfile::TempDir, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool::open(spool::Options {
        data_dir: dir.path().to_owned(),
        max_bytes: 1 << 20,
        max_requests: 100,
        min_disk_free: 0,
        evict_when_full: false,
        per_source_backlog: 100,
        keep_results_ms: 3_600_000,
        keep_results_bytes: 1 << 20,
        hold_unknown: false,
    });
    let settings = Settings {
        uplinks: Vec::new(),
        strategy: Strategy::default(),
        retry: RetrySettings { attempts: 1, base_ms: 1, max_ms: 1, budget: 0.1 },
        hold_unknown: false,
        max_attempts: 3,
        drain: DrainSettings { max_in_flight: 4, start_delay_ms: 0 },
        seed: 1,
    };
    let (_, network) = mpsc::channel(1);
    let (_, driver) = Gateway::build(Parts {
        settings,
        uplinks: Vec::new(),
        local: nobody(),
        spool: spool.unwrap(),
        pauses: Vec::new(),
        held: false,
        floor: Arc::new(Floor::new(0)),
        network,
        tasks: Arc::default(),
        prices: Prices::default(),
        auto: Vec::new(),
        money: Money::open(money::Options {
            data_dir: dir.path().to_owned(),
            usd_per_day: 0.0,
            prices: Prices::default(),
        }),
        on_models: Box::new(|_, _| {}),
        board: Board::new(dir.path().to_owned()),
    });
    (dir, driver)
}

fn nobody() -> Local {
    let ever = Duration::from_secs(1);
    let timeouts = Timeouts { connect: ever, first_token: ever, idle: ever, total: ever };
    let (model, vision_model, models) = (String::new(), String::new(), BTreeMap::new());
    let steward = StewardSettings { warm: Warm::Never, max_temperature_c: 80, shares_memory: false };
    let options =
        Options { base_url: None, api: Api::Ollama, model, vision_model, models, max_in_flight: 1, timeouts, steward };
    Local::new(options).unwrap()
}

fn leased(seq: u64) -> Leased {
    Leased {
        seq,
        id: "a".to_owned(),
        source: "uid:1000".to_owned(),
        endpoint: "/v1/chat/completions".to_owned(),
        model: "m".to_owned(),
        priority: Priority::Normal,
        attempts: 0,
        maybe_billed: false,
        idempotency_key: "a".to_owned(),
        task: None,
        body: Body::default(),
    }
}

async fn take(spool: &Spool) -> u64 {
    let leased = leased(0);
    let new = NewRequest {
        id: leased.id,
        source: leased.source,
        label: None,
        endpoint: leased.endpoint,
        model: leased.model,
        priority: leased.priority,
        policy: Policy::Both,
        body: leased.body,
        idempotency_key: None,
        ttl_ms: 3_600_000,
        leased: true,
        maybe_billed: false,
        device: None,
        task: None,
    };
    spool.accept(new).await.unwrap().seq
}

#[tokio::test]
async fn a_panic_leaves_no_request_on_its_way() {
    for (panics, state, reason) in [
        (0, State::Dead, Some("refused")),
        (1, State::Dead, Some("refused")),
        (2, State::Dead, Some("unknown")),
        (3, State::Sending, None),
    ] {
        let (_dir, mut driver) = driver();
        let seq = take(&driver.shared.spool).await;
        driver.leased.insert(seq, Arc::new(leased(seq)));
        PANICS.set(panics);
        driver.settle(seq, None, Verdict::Dead("refused"));
        driver.wind_up().await;
        let record = driver.shared.spool.get("a".to_owned()).await.unwrap().unwrap();
        assert_eq!((record.state, record.reason.as_deref()), (state, reason), "after {panics} panics");
    }
}

#[tokio::test]
async fn an_outcome_that_waits_for_a_salvage_stops_nobody_else() {
    let (_dir, mut driver) = driver();
    driver.shared.spool.pretend_salvage(77, true).await;
    driver.leased.insert(77, Arc::new(leased(77)));
    driver.settle(77, None, Verdict::Dead("refused"));
    let waits = timeout(Duration::from_millis(300), driver.tasks.join_next()).await;
    assert!(waits.is_err(), "it is tried again");
    assert!(driver.inbox.is_empty(), "and the drain is not told to stop");
    driver.shared.spool.pretend_salvage(77, false).await;
    assert!(driver.tasks.join_next().await.is_some_and(|ended| ended.is_ok()));
}
