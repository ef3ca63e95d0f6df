//! The ladder to an uplink: the rung that breaks is named, with what to do, and no token is spent on it.

use holdfast::cli::simulate::{Faults, Mode};
use serde_json::Value;

use crate::support::{Bench, Daemon, Settings, free_port, until};

/// Exit code, and each rung's name with how it stands and what is said of it.
async fn climbed(daemon: &Daemon, arguments: &[&str]) -> (i32, Vec<(String, String, String)>) {
    let (code, said) = daemon.tool(&[&["uplink", "test", "--json"], arguments].concat()).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    let word = |rung: &Value, field: &str| rung[field].as_str().unwrap().to_owned();
    let rungs = said[0]["rungs"].as_array().unwrap().iter();
    (code, rungs.map(|rung| (word(rung, "rung"), word(rung, "state"), word(rung, "detail"))).collect())
}

/// The first rung that breaks, and what is said of it.
fn broken(rungs: &[(String, String, String)]) -> (&str, &str) {
    let (name, _, detail) = rungs.iter().find(|(_, state, _)| state == "failed").expect("some rung breaks");
    (name, detail)
}

#[tokio::test]
async fn all_of_it_holds_and_no_token_is_spent() {
    let bench = Bench::start().await;
    let (code, rungs) = climbed(&bench.daemon, &[]).await;
    let stand: Vec<(&str, &str)> = rungs.iter().map(|(name, state, _)| (name.as_str(), state.as_str())).collect();
    let wanted = [
        ("address", "ok"),
        ("dns", "skipped"),
        ("tcp", "ok"),
        ("tls", "skipped"),
        ("clock", "ok"),
        ("answer", "ok"),
        ("credential", "ok"),
        ("model", "ok"),
    ];
    assert_eq!((code, stand.as_slice()), (0, &wanted[..]), "{rungs:?}");
    assert!(bench.uplink.log().is_empty(), "nothing was asked of the model");
    let (code, text) = bench.daemon.tool(&["uplink", "test", "sim"]).await;
    assert!(code == 0 && text.starts_with("uplink sim\n") && text.lines().count() == 9, "{text}");
    assert_eq!(bench.daemon.tool(&["uplink", "test", "nobody"]).await.0, 1);
}

#[tokio::test]
async fn the_rung_that_breaks_is_named() {
    let bench = Bench::start().await;
    for (faults, rung, word) in [
        (Faults::status(401), "credential", "api_keys"),
        (Faults::failing(Mode::Portal), "answer", "log in"),
        (Faults::failing(Mode::Redirect), "answer", "captive portal"),
        (Faults::status(503), "answer", "503"),
    ] {
        bench.uplink.set_faults(faults).await;
        let (code, rungs) = climbed(&bench.daemon, &["sim"]).await;
        let (name, detail) = broken(&rungs);
        assert!(code == 1 && name == rung && detail.contains(word), "{rungs:?}");
        let above = rungs.iter().skip_while(|(_, state, _)| state != "failed").skip(1);
        assert!(above.clone().all(|(_, state, _)| state == "skipped"), "{rungs:?}");
    }
}

#[tokio::test]
async fn names_that_nobody_knows_and_models_that_are_not_there_are_named() {
    let uplink = |name: &str, rest: &str| format!("[[uplink]]\nname = \"{name}\"\n{rest}\n");
    let nowhere = uplink("nowhere", "base_url = \"http://no-such-host.invalid/v1\"");
    let bench = Bench::with(Settings { extra: nowhere, ..Settings::default() }).await;
    let (_, rungs) = climbed(&bench.daemon, &["nowhere"]).await;
    let (name, detail) = broken(&rungs);
    // A sandbox without any network breaks one rung earlier.
    assert!(name == "dns" && detail.contains("no-such-host.invalid") || name == "address", "{rungs:?}");

    let other = format!("base_url = \"{}/v1\"\napi_keys = [{{ env = \"BENCH_UPLINK_KEY\" }}]", bench.uplink.base_url());
    let other = uplink("other", &format!("{other}\nmodels = {{ \"house\" = \"no-such-model\" }}"));
    let bench = Bench { daemon: Daemon::start(&format!("{}{other}", plain())).await, ..bench };
    let (_, rungs) = climbed(&bench.daemon, &["other"]).await;
    let (name, detail) = broken(&rungs);
    assert!(name == "model" && detail.starts_with("no-such-model not listed"), "{rungs:?}");
}

fn plain() -> String {
    "[gateway]\ndata_dir = \"@DIR@/data\"\n[http]\nsocket = \"@DIR@/hf.sock\"\n[local]\nbase_url = \"\"\n".to_owned()
}

#[tokio::test]
async fn during_an_outage_the_status_names_the_rung_by_itself() {
    let uplink = format!("[[uplink]]\nname = \"gone\"\nbase_url = \"http://127.0.0.1:{}/v1\"\n", free_port());
    let probe = "probe = { path = \"/models\", interval = \"100ms\", timeout = \"200ms\", fall = 1, rise = 1 }\n";
    let daemon = Daemon::start(&format!("{}{uplink}{probe}", plain())).await;
    let rung = until("the rung in the status", 20, || async {
        let status = daemon.status().await;
        Some(status["uplinks"][0]["rung"].clone()).filter(Value::is_object)
    })
    .await;
    assert_eq!((rung["rung"].as_str(), rung["state"].as_str()), (Some("tcp"), Some("failed")));
    let (_, text) = daemon.tool(&["status"]).await;
    assert!(text.contains("no connection"), "{text}");
}
