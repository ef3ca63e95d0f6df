//! The real program on a disk that turns read-only and back: no acknowledgement meanwhile, nothing leaves without its mark,
//! and all of it goes on by itself.
//!
//! A shim refuses every change with EROFS while a file is there: the kernel itself remounts no disk that has open files,
//! except after errors that end with a reboot.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::case::Outcome;
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::chat;
use crate::parts::uplink::Uplink;
use crate::parts::{rest, until};
use crate::shim;

const EROFS: i32 = 30;
/// Stored before.
const REQUESTS: usize = 5;
/// The drain comes by several times in this.
const WHILE: Duration = Duration::from_secs(2);

/// Does it in this folder, which is not below the data.
pub fn check(folder: &Path) -> Result<(), Outcome> {
    let library = shim::build("failing", folder)?;
    turn(folder, &library).map_err(|what| Outcome::Broken(format!("read-only disk: {what}")))
}

fn turn(folder: &Path, library: &Path) -> Result<(), String> {
    let (data, switch) = (folder.join("data"), folder.join("is-read-only"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let uplink_at = format!("http://{}/v1", listener.local_addr().map_err(|e| e.to_string())?);
    let uplink = Uplink::serve(listener, None);
    let environment = [
        ("LD_PRELOAD", library.display().to_string()),
        ("RIG_DIR", data.display().to_string()),
        ("RIG_FAIL_WHILE", switch.display().to_string()),
        ("RIG_FAIL_ERRNO", EROFS.to_string()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
    let mut gateway = Gateway::start(Setup { config: config(&data, &uplink_at), environment, ..Setup::default() });
    gateway.wait_available(true);
    gateway.ask("POST", "/holdfast/v1/pause", &[], b"").map_err(|e| e.to_string())?;
    let prompts: Vec<String> = (0..REQUESTS).map(|n| format!("before {n}")).collect();
    let ids = prompts.iter().map(|text| gateway.store(&chat(text))).collect::<Result<Vec<_>, _>>()?;

    std::fs::write(&switch, b"").map_err(|e| e.to_string())?;
    let later = [("prefer", "respond-async")];
    let refused = gateway.ask("POST", "/v1/chat/completions", &later, &chat("meanwhile")).map_err(|e| e.to_string())?;
    if refused.status != 507 || !refused.text().contains("read-only") {
        return Err(format!("a request that cannot be stored: {} {}", refused.status, refused.text()));
    }
    let health = || gateway.ask("GET", "/health", &[], b"").map(|reply| (reply.status, reply.text()));
    let says_it = || health().is_ok_and(|(status, text)| status == 503 && text.ends_with("disk_read_only\n"));
    until(10, || says_it().then_some(())).ok_or_else(|| format!("health does not say it: {:?}", health()))?;
    let live = gateway.ask("POST", "/v1/chat/completions", &[], &chat("live")).map_err(|e| e.to_string())?;
    if live.status != 200 {
        return Err(format!("a request that needs no disk: {} {}", live.status, live.text()));
    }
    gateway.ask("POST", "/holdfast/v1/resume", &[], b"").map_err(|e| e.to_string())?;
    rest(WHILE);
    if let Some(sent) = uplink.all().iter().find(|sent| prompts.contains(&sent.user) || sent.user == "meanwhile") {
        return Err(format!("sent, although no mark could be stored: {}", sent.user));
    }
    std::fs::remove_file(&switch).map_err(|e| e.to_string())?;
    until(30, || (health().ok()?.0 == 200).then_some(())).ok_or("it does not recover by itself")?;
    for (id, prompt) in ids.iter().zip(&prompts) {
        let record = gateway.finished(id, 30);
        if record["state"] != "answered" || uplink.sent(prompt).len() != 1 {
            return Err(format!("{} sends, and {record}", uplink.sent(prompt).len()));
        }
    }
    let id = gateway.store(&chat("after"))?;
    if gateway.finished(&id, 30)["state"] != "answered" || !uplink.sent("meanwhile").is_empty() {
        return Err("what was stored afterwards is not answered, or what was refused was sent".into());
    }
    if gateway.stop() { Ok(()) } else { Err("it did not stop well".into()) }
}

fn config(data: &Path, uplink: &str) -> String {
    format!(
        r#"
[gateway]
data_dir = "{}"
[http]
socket = "@DIR@/hf.sock"
[[uplink]]
name = "sim"
base_url = "{uplink}"
probe = {{ interval = "100ms", timeout = "2s", fall = 2, rise = 1 }}
[local]
base_url = ""
[drain]
start_jitter = "0s"
[cache]
ttl = "0s"
[limits]
rate = 0
"#,
        data.display()
    )
}
