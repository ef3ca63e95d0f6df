//! `holdfast reset`: what would go, and with `--yes` it goes.
//!
//! Owns the words. The folder itself is the supervisor's matter.

use serde_json::json;

use super::Global;
use super::exit::{Done, FAILED, Failure};
use super::offline::{failure, settings};
use super::out::{Out, size};
use crate::supervisor::reset::{Item, reset};

/// What to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Really remove it; without this it is only shown
    #[arg(long)]
    pub yes: bool,
}

/// Shows, and with `--yes` removes.
pub fn run(args: &Args, global: &Global, out: &Out) -> Done {
    let settings = settings(global)?;
    let folder = settings.gateway.data_dir.display().to_string();
    let items = reset(&settings, args.yes).map_err(failure)?;
    let (ours, others): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|item| item.what.is_some());
    if out.json {
        let line = |item: &Item| json!({ "path": item.path, "what": item.what, "bytes": item.bytes, "removed": args.yes && item.what.is_some() });
        items.iter().try_for_each(|item| out.json(&line(item)))?;
    } else {
        let verb = if args.yes { "removed" } else { "would remove" };
        for item in &ours {
            let what = item.what.unwrap_or_default();
            out.line(&format!("{verb} {}: {what}, {}", item.path.display(), size(item.bytes as f64)))?;
        }
    }
    for item in &others {
        out.note(&format!("{} is not the gateway's and stays", item.path.display()));
    }
    if ours.is_empty() {
        out.note(&format!("nothing of the gateway is in {folder}; another folder is named by the configuration (-c)"));
        return Ok(0);
    }
    if args.yes {
        out.note("the configuration and its keys are untouched: holdfast config show says where they are");
        return Ok(0);
    }
    Err(Failure::new(FAILED, "nothing was removed; say --yes to remove it for good"))
}
