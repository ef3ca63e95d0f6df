//! Any other `/v1/*`: to an available uplink, as it is.
//!
//! Nothing of it is stored or answered locally; the answer is streamed as it comes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::stream;
use hyper::Method;
use hyper::header::HeaderMap;

use super::App;
use super::answer::{self, Origin, passable};
use super::call::{forwardable, read_body, source};
use super::onward;
use super::refusal::Refusal;
use crate::body::Body as Stored;
use crate::control::event::{Outcome, Reason};
use crate::gateway::{LiveAttempt, Target};
use crate::money::bound;
use crate::uplink::classify;
use crate::uplink::cloud::{self, Reply};
use crate::uplink::usage::{self, Summary};

/// Passes a request on.
pub async fn any_v1(State(app): State<Arc<App>>, request: Request) -> Response {
    let method = request.method().clone();
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let headers = forwardable(request.headers());
    let source = source(&request);
    match read_body(app.gateway.spool().bodies(), request, app.options.max_body).await {
        Ok(body) => pass_on(&app, &source, method, path, headers, body).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Passes on a request whose body is here already.
pub async fn pass_on(
    app: &App,
    source: &str,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Stored,
) -> Response {
    let plain_path = path.split('?').next().unwrap_or_default();
    if app.gateway.money().is_capped() && method == Method::POST && bound::is_boundless(plain_path) {
        return Refusal::boundless().into_response();
    }
    let mut live = app.gateway.live_aside().of(source);
    let mut target = live.target().await;
    loop {
        target = match target {
            Target::Uplink(mut attempt) => {
                let call = cloud::Call {
                    method: method.clone(),
                    path: path.clone(),
                    headers: headers.clone(),
                    body: body.clone().into(),
                    on_out: None,
                };
                match attempt.send(call).await.and_then(check) {
                    Ok((reply, outcome)) => return pass(reply, outcome, attempt),
                    Err(outcome) => live.next(attempt, outcome).await,
                }
            }
            Target::Offline { reason: Reason::BudgetSpent, .. } => {
                return Refusal::budget_spent(&app.gateway.money().why()).into_response();
            }
            Target::Offline { reason, .. } => {
                let why = format!("this path needs one ({reason})");
                return Refusal::unavailable(&why).into_response();
            }
            Target::Unsure | Target::LastAnswer => return Refusal::upstream_timeout().into_response(),
            Target::Stopping => return Refusal::stopping().into_response(),
        };
    }
}

/// A log-in page or a redirect is nobody's answer; everything else is the uplink's word.
fn check(reply: Reply) -> Result<(Reply, Outcome), Outcome> {
    match classify::outcome(reply.status, &reply.headers, b"") {
        outcome @ Outcome::Unreachable(_) => Err(outcome),
        outcome => Ok((reply, outcome)),
    }
}

/// Streams the answer; at its end control learns what its status meant, an error of the uplink as one.
fn pass(reply: Reply, outcome: Outcome, attempt: LiveAttempt) -> Response {
    attempt.answering();
    let origin = Origin::uplink(attempt.cloud().name());
    let (status, headers) = (reply.status, passable(&reply.headers));
    let body = stream::unfold(Some((reply, attempt, Vec::new())), move |state| async move {
        let (mut reply, mut attempt, mut tail) = state?;
        match reply.next().await {
            Some(Ok(bytes)) => {
                onward::keep_tail(&mut tail, &bytes);
                Some((Ok(bytes), Some((reply, attempt, tail))))
            }
            Some(Err(error)) => {
                attempt.end(error.outcome);
                Some((Err(error), None))
            }
            None => {
                // It is charged by its `usage`, where the answer has one.
                attempt.spent("", &Summary { model: None, usage: usage::in_tail(&tail) });
                attempt.end(outcome);
                None
            }
        }
    });
    let mut response = answer::json(status, Body::from_stream(body), &origin);
    let ours = std::mem::replace(response.headers_mut(), headers);
    for (name, value) in &ours {
        if name != hyper::header::CONTENT_TYPE {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
