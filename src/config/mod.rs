//! Configuration: files and environment to validated [`Settings`], all faults at once.
//!
//! Owns every key, its default and its range. Starts nothing, and never holds a key of an uplink: [`Settings`]
//! say where a key is kept, [`read_key`] reads it when it is needed.

mod auto;
mod environ;
mod extras;
mod fault;
mod files;
mod gateway;
mod link;
mod local;
mod node;
mod queue;
mod secret;
mod task;
mod units;
mod uplink;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use environ::environment;
pub use extras::{Budget, Cache, Format, Level, Limits, Log, Model};
pub use fault::{Fault, Faults, Origin};
pub use gateway::{Gateway, Http};
pub use link::{Link, token};
pub use local::{KeepWarm, Local, LocalApi, LocalTimeouts};
pub use queue::{Drain, OnUnknown, Queue, Retry, Routing, WhenFull};
pub use secret::{KeySource, Secret, read_key};
pub use task::TaskOptions;
pub use uplink::{ApiKey, Auth, Breaker, Probe, Uplink, UplinkTimeouts};
pub use walk::Shown;

use crate::control::auto::Rule;
use crate::control::price::{ASSUMED, Prices};
use gateway::{INSTALLED, Places, TRIAL};
use node::Fields;
use walk::{Sink, Table};

/// Where an installed gateway's configuration is.
const ETC: &str = "/etc/holdfast";

/// A configuration is written by hand; a larger file is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `[gateway]`.
    pub gateway: Gateway,
    /// `[http]`.
    pub http: Http,
    /// `[[uplink]]`, in the order of the file; may be empty.
    pub uplinks: Vec<Uplink>,
    /// `[local]`.
    pub local: Local,
    /// `[routing]`.
    pub routing: Routing,
    /// `[queue]`.
    pub queue: Queue,
    /// `[drain]`.
    pub drain: Drain,
    /// `[retry]`.
    pub retry: Retry,
    /// `[cache]`.
    pub cache: Cache,
    /// `[limits]`.
    pub limits: Limits,
    /// `[budget]`.
    pub budget: Budget,
    /// `[[model]]`.
    pub models: Vec<Model>,
    /// `[[auto]]`.
    pub auto: Vec<Rule>,
    /// `[[task]]`.
    pub tasks: Vec<TaskOptions>,
    /// `[[link]]`.
    pub links: Vec<Link>,
    /// `[log]`.
    pub log: Log,
}

/// A configuration that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the parts are built from.
    pub settings: Settings,
    /// Every key with its value and where it came from, in the order of the sections.
    pub origins: Vec<Shown>,
    /// The files that were read, later ones winning.
    pub files: Vec<PathBuf>,
}

/// Reads `path` (or `HOLDFAST_CONFIG`, or the installed files, or none) and lays `variables` over it.
pub fn load(path: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, Faults> {
    let (loaded, faults) = read(path, &variables.into_iter().collect::<Vec<_>>(), Path::new(ETC));
    if faults.0.is_empty() { Ok(loaded) } else { Err(faults) }
}

/// The socket of the configuration, faults or not: a tool must reach a daemon that still runs on the last good one. Only a
/// file that was named and is no TOML says nothing.
pub fn socket(path: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>) -> Result<PathBuf, Faults> {
    if let Some(path) = path {
        read_file(path).map_err(Faults)?;
    }
    Ok(read(path, &variables.into_iter().collect::<Vec<_>>(), Path::new(ETC)).0.settings.http.socket)
}

impl Loaded {
    /// Models that the configuration names for a paid uplink and whose price nobody knows, while there is a budget.
    pub fn models_without_price(&self) -> Vec<String> {
        if self.settings.budget.usd_per_day <= 0.0 {
            return Vec::new();
        }
        let prices = Prices::new(self.settings.models.iter().map(|model| (model.name.clone(), ASSUMED)));
        let paid = self.settings.uplinks.iter().filter(|uplink| !uplink.free);
        let mut unknown: Vec<String> = paid.flat_map(|uplink| uplink.models.values().cloned()).collect();
        unknown.retain(|model| prices.or_assumed(model).1);
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// Why key files hold no key, as seen from here, each with its uplink's name. Where a key is kept in the service's
    /// environment or as its credential, nothing can be said from here.
    pub fn files_without_key(&self) -> Vec<(String, String)> {
        let keys = self.settings.uplinks.iter().flat_map(|uplink| uplink.api_keys.iter().map(move |key| (uplink, key)));
        let files = keys.filter(|(_, key)| matches!(key.source, KeySource::File(_)));
        files.filter_map(|(uplink, key)| Some((uplink.name.clone(), read_key(&key.source).err()?))).collect()
    }
}

fn read(path: Option<&Path>, variables: &[(String, String)], etc: &Path) -> (Loaded, Faults) {
    let files = files(path, variables, etc);
    let mut sink = Sink::default();
    let mut root = Fields::new();
    for file in &files {
        match read_file(file) {
            Ok(fields) => node::merge(&mut root, fields),
            Err(faults) => sink.faults.extend(faults),
        }
    }
    // A file that is no TOML may hold any key: further complaints about what it lacks would be guesses.
    let readable = sink.faults.is_empty();
    sink.faults.extend(environ::overlay(&mut root, variables));
    let syntax = sink.faults.clone();
    let places = if files.is_empty() { TRIAL } else { INSTALLED };
    let settings = walk::walk(&mut sink, &root, |table| settings(table, &places));
    let mut faults = if readable { sink.faults } else { syntax };
    faults.sort();
    faults.dedup();
    (Loaded { settings, origins: sink.shown, files }, Faults(faults))
}

fn settings(root: &mut Table<'_>, places: &Places) -> Settings {
    let gateway = root.table("gateway", |t| gateway::gateway(t, places));
    let http = root.table("http", |t| gateway::http(t, places));
    Settings {
        gateway,
        uplinks: uplink::uplinks(root),
        local: root.table("local", local::local),
        routing: root.table("routing", queue::routing),
        queue: root.table("queue", queue::queue),
        drain: root.table("drain", queue::drain),
        retry: root.table("retry", queue::retry),
        cache: root.table("cache", extras::cache),
        limits: root.table("limits", extras::limits),
        budget: root.table("budget", extras::budget),
        models: extras::models(root),
        auto: auto::rules(root),
        tasks: task::tasks(root),
        links: link::links(root, &http),
        http,
        log: root.table("log", extras::log),
    }
}

/// The files to read: the one that was named, else the installed ones that exist.
fn files(path: Option<&Path>, variables: &[(String, String)], etc: &Path) -> Vec<PathBuf> {
    let named = variables.iter().find(|(name, value)| name == "HOLDFAST_CONFIG" && !value.is_empty());
    if let Some(path) = path.map(Path::to_path_buf).or_else(|| named.map(|(_, value)| PathBuf::from(value))) {
        return vec![path];
    }
    let mut dropins: Vec<PathBuf> = std::fs::read_dir(etc.join("conf.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    dropins.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    dropins.sort();
    // One that exists and may not be read is named too, so that the refusal says so.
    let main = etc.join("holdfast.toml");
    let exists = !matches!(main.try_exists(), Ok(false));
    exists.then_some(main).into_iter().chain(dropins).collect()
}

fn read_file(path: &Path) -> Result<Fields, Vec<Fault>> {
    let file: Arc<str> = path.to_string_lossy().into();
    let whole = |message: String| {
        let origin = Origin::File { file: Arc::clone(&file), line: 0 };
        vec![Fault { origin, column: None, key: String::new(), message }]
    };
    let size = std::fs::metadata(path).map_err(|error| whole(format!("cannot be read: {error}")))?.len();
    if size > FILE_BYTES_MAX {
        return Err(whole(format!("is {size} bytes long; a configuration has at most {FILE_BYTES_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| whole("is not UTF-8 text; save it as such".to_owned()))?;
    node::parse(&file, &text)
}

#[cfg(test)]
mod tests;
