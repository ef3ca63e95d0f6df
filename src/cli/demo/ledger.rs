//! The demo's ledger: every request, what the machine got at once, and its one outcome.
//!
//! Owns the rows and the judgement whether they balance; asks the gateway and the uplink, never trusts the story.

use crate::cli::simulate::{Ended, Entry};

use super::client::Reply;
use super::gateway::Gateway;

/// `source` of an answer that came from the uplink.
const UPLINK: u8 = 1;
/// Digits shown of an id, its last ones: ids of one run begin alike.
const ID_DIGITS: usize = 8;

/// One request of the demo.
pub(super) struct Row {
    id: String,
    device: &'static str,
    prompt: String,
    /// What the machine got at once, and from where.
    got: String,
    /// The gateway has promised to bring it to an end.
    stored: bool,
    /// Nothing has come from the uplink yet.
    waits: bool,
    /// The gateway took it and answered at once, or stored it.
    accepted: bool,
    state: String,
    sends: usize,
}

/// The requests of one demo.
#[derive(Default)]
pub(super) struct Ledger(Vec<Row>);

impl Ledger {
    /// Notes an answer.
    pub(super) fn note(&mut self, device: &'static str, prompt: &str, reply: &Reply) {
        let ticket = reply.status == 202 || reply.said() == "request_queued";
        let stored = ticket || reply.header("x-holdfast-state") == "queued";
        let id = [reply.header("x-holdfast-id"), reply.header("x-request-id")];
        let id = id.into_iter().find(|id| !id.is_empty()).unwrap_or("-").to_owned();
        let got = match (ticket, reply.header("x-holdfast-route")) {
            (true, _) => "a ticket".to_owned(),
            (false, "") => format!("{} {}", reply.status, reply.said()),
            (false, route) => route.to_owned(),
        };
        let accepted = stored || reply.status == 200;
        let (prompt, state) = (prompt.to_owned(), String::new());
        self.0.push(Row { id, device, prompt, got, stored, waits: stored, accepted, state, sends: 0 });
    }

    /// Notes a request over the serial line: what was acknowledged there is stored.
    pub(super) fn note_line(&mut self, device: &'static str, prompt: &str, id: String, ended: &Ended, got: String) {
        let (prompt, state, stored) = (prompt.to_owned(), String::new(), ended.is_good());
        let waits = stored && ended.source != UPLINK;
        self.0.push(Row { id, device, prompt, got, stored, waits, accepted: stored, state, sends: 0 });
    }

    /// How many of them wait for the uplink.
    pub(super) fn waiting(&self) -> u64 {
        self.0.iter().filter(|row| row.waits).count() as u64
    }

    /// Asks the gateway for each outcome and the uplink for each send.
    pub(super) async fn settle(&mut self, gateway: &Gateway, log: &[Entry]) -> anyhow::Result<()> {
        for row in &mut self.0 {
            row.sends = log.iter().filter(|entry| entry.user == row.prompt).count();
            row.state = if row.stored {
                gateway.record(&row.id).await?["state"].as_str().unwrap_or("missing").to_owned()
            } else if row.accepted {
                "answered at once".to_owned()
            } else {
                "refused at once".to_owned()
            };
        }
        Ok(())
    }

    /// The ledger as a table.
    pub(super) fn table(&self) -> String {
        let head = format!("{:<13} {:<12} {:<28} {:<17} {}", "id", "device", "got at once", "outcome", "uplink saw it");
        let rows = self.0.iter().map(|row| {
            let id = row.id.get(row.id.len().saturating_sub(ID_DIGITS)..).unwrap_or(&row.id);
            format!("…{id:<12} {:<12} {:<28} {:<17} {}x", row.device, row.got, row.state, row.sends)
        });
        std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
    }

    /// One line that adds up, and whether it does.
    pub(super) fn balance(&self) -> (String, bool) {
        let accepted = self.0.iter().filter(|row| row.accepted).count();
        let ended = self.0.iter().filter(|row| row.accepted && row.has_one_outcome()).count();
        let refused = self.0.len() - accepted;
        let twice = self.0.iter().filter(|row| row.sends > 1).count();
        let strays = self.0.iter().filter(|row| !row.accepted && row.sends > 0).count();
        let balanced = ended == accepted && twice == 0 && strays == 0 && accepted > 0;
        let line = format!(
            "{} requests = {accepted} accepted + {refused} refused at once; {ended} of {accepted} have exactly one \
             outcome, {twice} were sent twice: {}",
            self.0.len(),
            if balanced { "the ledger balances." } else { "THE LEDGER DOES NOT BALANCE." }
        );
        (line, balanced)
    }
}

impl Row {
    fn has_one_outcome(&self) -> bool {
        if !self.stored {
            return true;
        }
        match self.state.as_str() {
            // An answer from the uplink that the uplink never saw would be a lie.
            "answered" => self.sends == 1,
            "expired" | "cancelled" | "evicted" | "dead" => self.sends <= 1,
            _ => false,
        }
    }
}
