//! `/holdfast/v1/spend` and the purse as `status`, `health` and the metrics show it.
//!
//! Owns the JSON of the ledger. Counts nothing.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::App;
use super::answer::{self, Origin};
use super::refusal::Refusal;
use crate::money::ledger::{DAYS_MAX, Day, Row, date};
use crate::money::{View, usd};

/// Days shown unless `days` says otherwise.
const DAYS: u64 = 7;

/// `GET /holdfast/v1/spend?days=N`: today and the days before, newest first.
pub async fn spend(State(app): State<Arc<App>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let days = match query.get("days").map(|days| days.parse::<u64>()) {
        None => DAYS,
        Some(Ok(days)) if (1..=DAYS_MAX).contains(&days) => days,
        Some(_) => {
            let message = format!("days: use a number from 1 to {DAYS_MAX}");
            return Refusal::bad_field("invalid_query", Some("days"), message).into_response();
        }
    };
    let money = app.gateway.money().clone();
    let (view, days) = (money.view(), tokio::task::spawn_blocking(move || money.days(days)).await.unwrap_or_default());
    let days: Vec<Value> = days.iter().map(day).collect();
    let body = json!({"object": "list", "budget": budget(&view), "days": days});
    answer::json(StatusCode::OK, body.to_string(), &Origin::default())
}

fn day(day: &Day) -> Value {
    let (prompt_tokens, completion_tokens) = day.tokens();
    json!({
        "date": date(day.day),
        "usd": usd(day.nano_usd()),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "crashed_usd": usd(day.crashed_nano_usd),
        "rows": day.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

fn row(row: &Row) -> Value {
    json!({
        "uplink": row.uplink,
        "model": row.model,
        "source": row.source,
        "attempts": row.attempts,
        "unclear": row.unclear,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "usd": usd(row.nano_usd),
        "assumed_price": row.assumed_price,
    })
}

/// The purse of today.
pub fn budget(view: &View) -> Value {
    json!({
        "date": view.date,
        "usd_per_day": view.cap_usd,
        "spent_usd": view.spent_usd,
        "reserved_usd": view.reserved_usd,
        "crashed_usd": view.crashed_usd,
        "prompt_tokens": view.tokens.0,
        "completion_tokens": view.tokens.1,
        "assumed_price": view.assumed_price,
        "paused": paused(view),
        "until": view.spent_until_s,
    })
}

/// Why paid requests wait, where they do.
pub fn paused(view: &View) -> Option<String> {
    (view.spent_until_s.is_some() || view.disk_failed).then(|| view.sentence())
}
