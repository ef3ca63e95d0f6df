//! From `[[link]]` to running links.
//!
//! Owns the translation of the configuration's words into the room's, and the reading of tokens.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::SupervisorError;
use crate::config::{self, Settings};
use crate::gateway::Gateway;
use crate::ingress::link::core::tasks::Tasks;
use crate::ingress::link::{Common, Links, Options, Serial, Token};

/// The model of a question that names none, as of a task that names none.
const MODEL: &str = "gpt-4o";

/// What every link is configured with. Reads tokens, so that a wrong one is known before anything starts.
pub(super) fn options(settings: &Settings) -> Result<Vec<Options>, SupervisorError> {
    settings.links.iter().map(one).collect()
}

/// Starts them.
pub(super) fn start(
    gateway: &Gateway,
    all: Vec<Options>,
    settings: &Settings,
    tasks: Arc<dyn Tasks>,
    stop: &watch::Receiver<bool>,
) -> (Links, Vec<JoinHandle<()>>) {
    let common = Common {
        gateway_name: settings.gateway.device_id.clone(),
        ttl: settings.queue.ttl,
        model: MODEL.to_owned(),
        data_dir: settings.gateway.data_dir.clone(),
        min_disk_free: settings.queue.min_disk_free,
        tasks,
    };
    Links::start(gateway, all, &common, stop)
}

fn one(link: &config::Link) -> Result<Options, SupervisorError> {
    let token = link.token_file.as_deref().map(|path| token(&link.name, path)).transpose()?;
    Ok(Options {
        name: link.name.clone(),
        place: link.place.clone(),
        protocol: link.protocol,
        serial: Serial {
            baud: link.baud,
            parity: link.parity,
            stop_bits: link.stop_bits as u8,
            dtr: link.dtr,
            rs485: link.rs485,
        },
        addresses: link.addresses.clone(),
        token,
        offline: link.offline,
        crc_optional: link.crc_optional,
        push: link.push,
        line_max: link.line_max as u16,
        unit: link.unit as u8,
        word_order: link.word_order,
        uid: link.uid.clone(),
    })
}

fn token(link: &str, path: &Path) -> Result<Token, SupervisorError> {
    let fault =
        |why: String| SupervisorError::Configuration(format!("link {link}: token_file {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
    let secret = config::token(&text).map_err(fault)?;
    Ok(Token::new(secret))
}
