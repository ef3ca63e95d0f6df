//! Any other `/v1/*`: to an available uplink, as it is.
//!
//! Nothing of it is stored or answered locally; the answer is streamed as it comes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::stream;
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};

use super::App;
use super::answer::{self, Origin, passable};
use super::call::{forwardable, read_body, source};
use super::onward;
use super::refusal::Refusal;
use super::responses;
use crate::batch::{BATCH_PREFIX, FILE_PREFIX};
use crate::body::Body as Stored;
use crate::clock;
use crate::control::event::{Outcome, Reason};
use crate::control::types::Priority;
use crate::gateway::{LiveAttempt, Target};
use crate::money::bound;
use crate::uplink::body::{self, Head};
use crate::uplink::classify;
use crate::uplink::cloud::{self, Reply, Whole};
use crate::uplink::usage::{self, Summary};

/// As much of an uplink's refusal as is passed on.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Names that were given here and mean nothing to an uplink.
const OURS: [&str; 3] = [FILE_PREFIX, BATCH_PREFIX, responses::PREFIX];

/// Passes a request on.
pub async fn any_v1(State(app): State<Arc<App>>, request: Request) -> Response {
    if request.uri().path().split('/').any(|part| OURS.iter().any(|prefix| part.starts_with(prefix))) {
        let message = "the gateway keeps this file, batch or response and has nothing at this path; docs/later.md says what there is";
        return Refusal::new(StatusCode::NOT_FOUND, "unknown_path", message).into_response();
    }
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
    let began = clock::now();
    app.passed_on("uplink", try_pass_on(app, source, method, path, headers, body).await, began)
}

async fn try_pass_on(
    app: &App,
    source: &str,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Stored,
) -> Result<Response, Refusal> {
    let plain_path = path.split('?').next().unwrap_or_default();
    if app.gateway.money().is_capped() && method == Method::POST && bound::is_boundless(plain_path) {
        return Err(Refusal::boundless());
    }
    let head = head_of(app, plain_path, &body).await;
    let mut live = app.gateway.live_aside().of(source);
    let mut target = live.target().await;
    let mut last: Option<(Whole, Origin)> = None;
    let mut maybe_billed = false;
    loop {
        target = match target {
            Target::Uplink(mut attempt) => {
                let cloud = attempt.cloud();
                let spliced = match &head {
                    Some(head) => body::for_uplink(&body, head, cloud.alias(&head.model), true),
                    None => body.clone().into(),
                };
                let call = cloud::Call {
                    method: method.clone(),
                    path: path.clone(),
                    headers: headers.clone(),
                    body: spliced,
                    on_out: None,
                };
                match attempt.send(call).await {
                    Err(outcome) => {
                        maybe_billed |= !method.is_safe() && matches!(outcome, Outcome::Unknown(_));
                        live.next(attempt, outcome).await
                    }
                    Ok(reply) => match check(reply).await {
                        Checked::Answer(reply, outcome) => {
                            let asked = head.map(|head| head.model).unwrap_or_default();
                            return Ok(pass(*reply, outcome, attempt, asked));
                        }
                        Checked::Nobodys(outcome) => live.next(attempt, outcome).await,
                        Checked::Refused(outcome, whole) => {
                            last = Some((whole, Origin::uplink(cloud.name())));
                            live.next(attempt, outcome).await
                        }
                    },
                }
            }
            Target::LastAnswer if last.is_some() => {
                let Some((whole, origin)) = last else { return Err(Refusal::upstream_timeout()) };
                return Ok(answer::from_uplink(whole, &origin));
            }
            Target::Offline { reason, .. } => return Err(offline(app, reason, maybe_billed)),
            Target::Unsure | Target::LastAnswer => return Err(Refusal::upstream_timeout()),
            Target::Stopping => return Err(Refusal::stopping().after_a_send(maybe_billed)),
        };
    }
}

/// What nobody here can answer in an uplink's place.
fn offline(app: &App, reason: Reason, maybe_billed: bool) -> Refusal {
    match reason {
        _ if maybe_billed => Refusal::upstream_timeout(),
        Reason::BudgetSpent => Refusal::budget_spent(&app.gateway.money().why()),
        reason => Refusal::unavailable(&format!("this path needs one ({reason})")),
    }
}

/// What the body says about itself, with `auto` decided, where it asks for a model. Anything else goes as it came.
async fn head_of(app: &App, path: &str, body: &Stored) -> Option<Head> {
    let mut head = body::read(path, body).ok()?;
    app.gateway.choose_model(&clock::request_id(), &mut head, body, Priority::Normal).await;
    Some(head)
}

/// An answer by its head.
enum Checked {
    /// It is passed on.
    Answer(Box<Reply>, Outcome),
    /// A log-in page or a redirect is nobody's answer.
    Nobodys(Outcome),
    /// Its key, its quota or its model: nothing was done, so another may be asked.
    Refused(Outcome, Whole),
}

async fn check(mut reply: Reply) -> Checked {
    match classify::outcome(reply.status, &reply.headers, b"") {
        outcome @ Outcome::Unreachable(_) => Checked::Nobodys(outcome),
        outcome @ (Outcome::Blocked(_) | Outcome::RateLimited { .. }) => match reply.beginning(ERROR_BYTES_MAX).await {
            Ok((words, _)) => Checked::Refused(outcome, reply.with_body(words)),
            Err(error) => Checked::Nobodys(error.outcome),
        },
        outcome => Checked::Answer(Box::new(reply), outcome),
    }
}

/// Streams the answer; at its end control learns what its status meant, an error of the uplink as one.
fn pass(reply: Reply, outcome: Outcome, attempt: LiveAttempt, asked: String) -> Response {
    attempt.answering();
    let origin = Origin::uplink(attempt.cloud().name());
    let (status, headers) = (reply.status, passable(&reply.headers));
    let body = stream::unfold(Some((reply, attempt, asked, Vec::new())), move |state| async move {
        let (mut reply, mut attempt, asked, mut tail) = state?;
        match reply.next().await {
            Some(Ok(bytes)) => {
                onward::keep_tail(&mut tail, &bytes);
                Some((Ok(bytes), Some((reply, attempt, asked, tail))))
            }
            Some(Err(error)) => {
                attempt.end(error.outcome);
                Some((Err(error), None))
            }
            None => {
                // It is charged by its `usage`, where the answer has one.
                attempt.spent(&asked, &Summary { model: None, usage: usage::in_tail(&tail) });
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
