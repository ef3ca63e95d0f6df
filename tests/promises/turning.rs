//! Half-duplex lines: the driver is told to turn them and asked what it kept; one that cannot stops nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Bench, Settings, until, wired};

fn library(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/support/rs485.c");
    let library = folder.join("rs485.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.unwrap().success(), "cc: apt-get install gcc libc6-dev");
    library
}

/// A link over a port with this driver: what the journal says once it is open, and what the driver was told.
async fn opened(driver: Option<&str>) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let (port, _other) = wired();
    let link =
        format!("[[link]]\nname = \"bus\"\ndevice = \"{}\"\nprotocol = \"lines\"\nrs485 = true\n", port.display());
    let log = folder.path().join("told");
    let mut environment = Vec::new();
    if let Some(driver) = driver {
        environment.push(("LD_PRELOAD", library(folder.path()).display().to_string()));
        environment.push(("RS485_DRIVER", driver.to_owned()));
        environment.push(("RS485_LOG", log.display().to_string()));
    }
    let bench = Bench::with(Settings { extra: link, environment, ..Settings::without_local() }).await;
    until("the port to be open", 20, || async {
        (bench.daemon.status().await["links"][0]["state"] == "open").then_some(())
    })
    .await;
    let said = std::fs::read_to_string(bench.daemon.folder().join("daemon.log")).unwrap();
    let said = said.lines().find(|line| line.contains("rs485")).expect("the journal says what came of it").to_owned();
    (said, std::fs::read_to_string(log).unwrap_or_default())
}

#[tokio::test]
async fn a_driver_that_turns_the_line_is_told_to() {
    let (said, told) = opened(Some("keeps")).await;
    assert_eq!(told, "enabled 1\n");
    assert!(said.contains("turns the line") && said.contains("after=3ms"), "{said}");
}

#[tokio::test]
async fn a_driver_that_forgets_it_is_found_out_by_reading_back() {
    let (said, told) = opened(Some("forgets")).await;
    assert_eq!(told, "enabled 1\n");
    assert!(said.contains("did not keep it"), "{said}");
}

#[tokio::test]
async fn a_driver_that_cannot_stops_nothing() {
    let (said, _) = opened(None).await;
    assert!(said.contains("cannot turn the line"), "{said}");
}
