//! `/v1/models`: the uplinks' own lists, kept on disk so that they are served offline too, aliases and local
//! models.
//!
//! The lists come from the probes, so nothing is asked twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::answer::{Origin, json};
use super::path::Named;
use super::refusal::Refusal;
use crate::control::auto::AUTO;
use crate::durable;

/// Models kept of one uplink.
const MODELS_MAX: usize = 5000;

#[derive(Deserialize)]
struct Listing {
    data: Vec<Value>,
}

/// The lists of all uplinks.
pub struct Models {
    folder: PathBuf,
    lists: Mutex<BTreeMap<String, Vec<Value>>>,
}

impl Models {
    /// Reads what was kept of the named uplinks.
    pub fn open(data_dir: &Path, uplinks: &[String]) -> Models {
        let folder = data_dir.join("models");
        let kept = uplinks.iter().filter_map(|name| {
            let text = std::fs::read(list_file(&folder, name)).ok()?;
            Some((name.clone(), parse(&text)?))
        });
        let lists = Mutex::new(kept.collect());
        Models { folder, lists }
    }

    /// Takes in an uplink's list, where a probe's is another than the one before; writes it only where it is not what is kept.
    pub fn update(&self, uplink: &str, body: &[u8]) {
        let Some(list) = parse(body) else { return };
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.get(uplink) == Some(&list) {
            return;
        }
        let text = json!({"object": "list", "data": list}).to_string();
        lists.insert(uplink.to_owned(), list);
        drop(lists);
        if let Err(error) = self.keep(uplink, &text) {
            tracing::warn!("the list of models of {uplink} is not kept for the next start: {error}");
        }
    }

    fn keep(&self, uplink: &str, text: &str) -> std::io::Result<()> {
        durable::make_folder(&self.folder)?;
        durable::replace(&list_file(&self.folder, uplink), text.as_bytes())
    }

    fn all(&self) -> Vec<Value> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }
}

/// An uplink's name may hold anything; a file's name may not.
fn list_file(folder: &Path, uplink: &str) -> PathBuf {
    let safe: String = uplink.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    folder.join(format!("{safe}.json"))
}

fn parse(body: &[u8]) -> Option<Vec<Value>> {
    let mut list = serde_json::from_slice::<Listing>(body).ok()?.data;
    list.truncate(MODELS_MAX);
    Some(list)
}

async fn collect(app: &App) -> Vec<Value> {
    let mut models = app.models.all();
    let own = |id: &str, owner: &str| json!({"id": id, "object": "model", "created": 0, "owned_by": owner});
    for uplink in app.gateway.uplinks() {
        models.extend(uplink.aliases().map(|alias| own(alias, uplink.name())));
    }
    models.extend(app.gateway.has_auto().then(|| own(AUTO, "holdfast")));
    if app.gateway.local().is_enabled() {
        let local = app.gateway.local().probe().await.unwrap_or_default();
        models.extend(local.iter().map(|name| own(name, "local")));
    }
    let mut seen = std::collections::HashSet::new();
    models.retain(|model| seen.insert(model["id"].as_str().unwrap_or_default().to_owned()));
    models
}

/// `GET /v1/models`.
pub async fn list(State(app): State<Arc<App>>) -> Response {
    let list = json!({"object": "list", "data": collect(&app).await});
    json(StatusCode::OK, list.to_string(), &Origin::default())
}

/// `GET /v1/models/{id}`.
pub async fn one(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    let found = collect(&app).await.into_iter().find(|model| model["id"] == id.as_str());
    if let Some(model) = found {
        json(StatusCode::OK, model.to_string(), &Origin::default())
    } else {
        let message = "no uplink and no local model has this name; see GET /v1/models";
        Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message).into_response()
    }
}
