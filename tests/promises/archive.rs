//! The archive for support: what helps is in it, and no key, prompt, picture or answer.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use holdfast::cli::simulate::{Faults, Mode};

use crate::support::{Ask, Bench, KEY, Settings};

fn parts(archive: &Path) -> BTreeMap<String, String> {
    let file = std::fs::File::open(archive).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let part = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        let _: usize = Read::read_to_end(&mut entry, &mut bytes).unwrap();
        (name, String::from_utf8_lossy(&bytes).into_owned())
    };
    archive.entries().unwrap().map(part).collect()
}

#[tokio::test]
async fn it_tells_how_things_stand_and_nothing_that_was_said() {
    let task = "[[task]]\nid = 3\nname = \"weld\"\nprompt = \"secret recipe {temp}\"\nsystem = \"secret trade\"\n";
    let bench = Bench::with(Settings { extra: task.to_owned(), ..Settings::default() }).await;
    bench.daemon.send(Ask::chat("secret question")).await;
    bench.outage(Faults::failing(Mode::Refuse)).await;
    bench.daemon.send(Ask::chat("secret question offline")).await;
    let place = bench.daemon.folder().join("diag.tar.gz");
    let (code, said) = bench.daemon.tool(&["diag", "-o", place.to_str().unwrap()]).await;
    assert_eq!((code, said.trim()), (0, place.to_str().unwrap()));
    let parts = parts(&place);
    for (name, text) in &parts {
        for secret in ["secret", KEY] {
            assert!(!text.contains(secret), "{name}: {text}");
        }
    }
    assert!(parts["status.json"].contains("\"offline\"") && parts["metrics.txt"].contains("holdfast_"));
    assert!(parts["requests.json"].contains("\"queued\"") && parts["data.txt"].contains("spool.db"));
    assert!(parts["config.json"].contains("task[0].prompt") && parts["config.json"].contains("(20 characters)"));
    assert!(!parts["system-proc-meminfo.txt"].is_empty());
}

#[tokio::test]
async fn it_is_made_where_no_daemon_answers_and_says_what_is_missing() {
    let mut bench = Bench::start().await;
    bench.daemon.kill().await;
    let place = bench.daemon.folder().join("diag.tar.gz");
    let (code, _) = bench.daemon.tool(&["diag", "-o", place.to_str().unwrap()]).await;
    let parts = parts(&place);
    assert_eq!(code, 0);
    assert!(parts["missing.txt"].contains("status.json: ") && !parts.contains_key("status.json"));
    assert!(parts.contains_key("config.json"));
}

#[tokio::test]
async fn manual_pages_are_written_for_every_command() {
    let bench = Bench::start().await;
    let pages = bench.daemon.folder().join("man");
    let (code, _) = bench.daemon.tool(&["man", "--dir", pages.to_str().unwrap()]).await;
    assert_eq!(code, 0);
    let page = |name: &str| std::fs::read_to_string(pages.join(name)).unwrap();
    assert!(page("holdfast.1").contains(".TH holdfast 1"));
    assert!(page("holdfast-queue-list.1").contains("holdfast") && page("holdfast-diag.1").contains("support"));
}
