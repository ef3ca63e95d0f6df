//! `holdfast demo`: the whole product in one command on a fresh machine.
//!
//! Owns the story: both simulators in this process, the real daemon as a child, an outage, a crash, the recovery and
//! the ledger at the end. Never touches a real gateway, its data or its configuration.

mod cable;
mod client;
mod gateway;
mod ledger;

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::simulate::{
    Ask, DeviceOptions, Faults, LineAt, Mode, OllamaOptions, Simulator, UplinkOptions, run_device, serve_ollama,
    serve_uplink,
};
use crate::clock;
use cable::Cable;
use gateway::Gateway;
use ledger::Ledger;

/// The promise is 60 s; a demo that needs longer has failed.
const ENDS_WITHIN: Duration = Duration::from_secs(55);
const SEEN_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
/// Time to read a line.
const BREATH: Duration = Duration::from_millis(400);
/// One grey pixel, as a camera's picture.
const PICTURE: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";

/// Tells the story on stdout; true only if every accepted request has exactly one outcome and no send was repeated.
pub async fn run() -> anyhow::Result<bool> {
    tokio::select! {
        told = tokio::time::timeout(ENDS_WITHIN, story()) => {
            told.with_context(|| format!("the demo did not end within {ENDS_WITHIN:?}"))?
        }
        // Ends like any other error, so that the daemon and the folder go too.
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

/// Everything on the stage.
struct Stage {
    gateway: Gateway,
    uplink: Simulator,
    _ollama: Simulator,
    ledger: Ledger,
    cable: Cable,
}

async fn story() -> anyhow::Result<bool> {
    let started = clock::now();
    let mut stage = Stage::set().await?;
    stage.online().await?;
    stage.outage().await?;
    stage.crash().await?;
    stage.recovery().await?;
    let balanced = stage.close().await?;
    say(format!("\nDone in {:.1} s.", started.elapsed().as_secs_f32()))?;
    Ok(balanced)
}

impl Stage {
    async fn set() -> anyhow::Result<Stage> {
        say("holdfast demo: the real gateway, with simulators for the cloud and for Ollama.")?;
        let faults = Faults { delay_ms: 40, chunk_ms: 20, ..Faults::default() };
        let uplink = serve_uplink(UplinkOptions { faults: faults.clone(), ..UplinkOptions::default() }).await?;
        let ollama = serve_ollama(OllamaOptions { faults, ..OllamaOptions::default() }).await?;
        let gateway = Gateway::start(&uplink.base_url(), &ollama.base_url()).await?;
        say(format!("  cloud (simulator)   {}", uplink.base_url()))?;
        say(format!("  Ollama (simulator)  {}", ollama.base_url()))?;
        say(format!("  gateway             {}", gateway.socket().display()))?;
        let cable = Cable::lay(&gateway.serial_port())?;
        say(format!("  serial line         a simulated PLC on {}", cable.device_end().display()))?;
        Ok(Stage { gateway, uplink, _ollama: ollama, ledger: Ledger::default(), cable })
    }

    async fn online(&mut self) -> anyhow::Result<()> {
        say("\n1. The uplink is available: its answers; only what comes over the serial line is stored first.")?;
        self.ask("sensor-7", "Bearing 7 is at 71 C. Normal?", &[], json!({})).await?;
        self.picture("camera-2", "Is the weld in this picture whole?").await?;
        self.by_line("plc-3", "Press 3 at 41 kN. In its range?").await?;
        self.ask("panel-1", "Explain alarm 314 to the operator.", &[], json!({"stream": true})).await?;
        self.show_backlog().await
    }

    async fn outage(&mut self) -> anyhow::Result<()> {
        say("\n2. The line goes dead: the cloud refuses every connection.")?;
        self.uplink.set_faults(Faults::failing(Mode::Refuse)).await;
        let started = clock::now();
        while self.gateway.failed_checks().await? < 2 {
            if started.elapsed() > SEEN_WITHIN {
                bail!("the gateway did not notice the outage within {SEEN_WITHIN:?}");
            }
            tokio::time::sleep(POLL).await;
        }
        say(format!("   Noticed after {} ms. The local model answers, and requests are kept for later:", ms(started)))?;
        for reading in 0..5_u32 {
            let prompt = format!("Bearing 7 is at {} C. Normal?", 72 + 3 * reading);
            self.ask("sensor-7", &prompt, &[], json!({})).await?;
            self.show_backlog().await?;
        }
        self.picture("camera-2", "And is this weld whole?").await?;
        self.by_line("plc-3", "Press 3 at 58 kN. In its range?").await?;
        self.ask("panel-1", "Explain alarm 315 to the operator.", &[], json!({"stream": true})).await?;
        say("   A report can wait for the cloud: it gets a ticket, durable on disk.")?;
        let queue = [("x-holdfast-offline", "queue"), ("x-stainless-read-timeout", "1")];
        self.ask("reports", "Summarise the shift in three lines.", &queue, json!({})).await?;
        let asynchronous = [("prefer", "respond-async"), ("x-holdfast-priority", "critical")];
        self.ask("alarm-bus", "Bearing 7 is at 96 C! Stop the line?", &asynchronous, json!({})).await?;
        say("   Some want no copy kept, and some would rather fail:")?;
        self.ask("panel-1", "What does LED 4 mean?", &[("x-holdfast-offline", "local")], json!({})).await?;
        self.ask("trader", "Price of copper now?", &[("x-holdfast-offline", "fail")], json!({})).await?;
        self.show_backlog().await
    }

    async fn crash(&mut self) -> anyhow::Result<()> {
        say("\n3. Worse: somebody pulls the plug. kill -9, then a start from the same disk.")?;
        self.gateway.crash_and_restart().await?;
        self.show_backlog().await?;
        let (kept, promised) = (self.gateway.backlog().await?, self.ledger.waiting());
        say(format!("   {promised} were promised, {kept} are there."))
    }

    async fn recovery(&mut self) -> anyhow::Result<()> {
        say("\n4. The line is back: the backlog drains by itself, the most urgent first.")?;
        let before = self.uplink.log().len();
        self.uplink.set_faults(Faults { delay_ms: 40, ..Faults::default() }).await;
        let started = clock::now();
        while self.gateway.backlog().await? > 0 {
            if started.elapsed() > SEEN_WITHIN {
                say(format!("   The backlog is not empty after {SEEN_WITHIN:?}."))?;
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        for entry in self.uplink.log().iter().skip(before) {
            say(format!("   -> cloud: {}", entry.user))?;
        }
        say(format!("   Drained in {} ms.", ms(started)))?;
        self.show_backlog().await
    }

    async fn close(&mut self) -> anyhow::Result<bool> {
        say("\n5. The ledger.\n")?;
        self.ledger.settle(&self.gateway, &self.uplink.log()).await?;
        say(self.ledger.table())?;
        let (line, balanced) = self.ledger.balance();
        say(format!("\n{line}"))?;
        let stopped = self.gateway.stop().await?;
        if !stopped {
            say("The gateway did not stop cleanly.")?;
        }
        Ok(balanced && stopped)
    }

    async fn picture(&mut self, device: &'static str, prompt: &str) -> anyhow::Result<()> {
        let parts = json!([{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": PICTURE}}]);
        let messages = json!([{"role": "user", "content": parts}]);
        self.ask(device, prompt, &[], json!({"messages": messages})).await
    }

    /// One request from one device, told in one line and noted in the ledger.
    async fn ask(
        &mut self,
        device: &'static str,
        prompt: &str,
        headers: &[(&str, &str)],
        more: Value,
    ) -> anyhow::Result<()> {
        let mut body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": prompt}]});
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        let headers = [headers, &[("x-edge-device", device)]].concat();
        let started = clock::now();
        let reply = client::post(&self.gateway.socket(), "/v1/chat/completions", &headers, &body).await?;
        let route = match reply.header("x-holdfast-route") {
            "" => "no model",
            route => route,
        };
        let said = if reply.status == 202 { "accepted".to_owned() } else { reply.said() };
        say(format!("   {device:<10} {} in {:>4} ms from {route}: {said}", reply.status, ms(started)))?;
        self.ledger.note(device, prompt, &reply);
        tokio::time::sleep(BREATH).await;
        Ok(())
    }

    /// One request over the serial line: on the gateway's disk first, then answered.
    async fn by_line(&mut self, device: &'static str, prompt: &str) -> anyhow::Result<()> {
        let at = LineAt::Port { path: self.cable.device_end(), baud: 115_200, even_parity: false };
        let started = clock::now();
        let ended = run_device(&DeviceOptions::new(at, device, Ask::chat(prompt, None))).await?;
        let ended = ended.into_iter().next().context("the simulated device has no answer")?;
        let from = ["nobody", "the uplink", "the local model", "the cache"].get(usize::from(ended.source));
        let from = format!("{}, by line", from.unwrap_or(&"somebody"));
        say(format!("   {device:<10} ok  in {:>4} ms from {from}: {}", ms(started), ended.text))?;
        let id = self.gateway.id_of(ended.req).await?;
        self.ledger.note_line(device, prompt, id, &ended, from);
        tokio::time::sleep(BREATH).await;
        Ok(())
    }

    async fn show_backlog(&self) -> anyhow::Result<()> {
        say(format!("   backlog: {}", self.gateway.backlog().await?))
    }
}

fn ms(since: std::time::Instant) -> u128 {
    since.elapsed().as_millis()
}

fn say(line: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
