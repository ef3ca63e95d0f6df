//! `POST /holdfast/v1/uplinks/{name}/test`: the ladder to one uplink, rung by rung.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::answer::{self, Origin};
use super::path::Named;
use super::refusal::Refusal;
use crate::uplink::ladder::Rung;

/// Climbs and tells; it takes some seconds where something hangs.
pub async fn test(State(app): State<Arc<App>>, Named(name): Named) -> Response {
    let names = || app.gateway.uplinks().iter().map(|cloud| cloud.name());
    let Some(index) = names().position(|other| other == name) else {
        let known = names().collect::<Vec<_>>().join(", ");
        let message = format!("no uplink has this name; there are: {known}");
        return Refusal::new(StatusCode::NOT_FOUND, "uplink_not_found", message).into_response();
    };
    let rungs = app.gateway.climb(index).await;
    let rungs: Vec<Value> = rungs.iter().map(rung_json).collect();
    answer::json(StatusCode::OK, json!({"uplink": name, "rungs": rungs}).to_string(), &Origin::default())
}

/// One rung as clients see it.
pub fn rung_json(rung: &Rung) -> Value {
    json!({
        "rung": rung.name,
        "state": rung.standing.as_str(),
        "detail": rung.detail,
        "took_ms": rung.took_ms,
    })
}
