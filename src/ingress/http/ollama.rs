//! `/api/*`: the local Ollama's own API, passed on as it is; `/api/ollama/*` under its other names.
//!
//! Rewrites paths and nothing else.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use hyper::{StatusCode, Uri};

use super::App;
use super::answer::passable;
use super::call::{forwardable, read_body};
use super::refusal::Refusal;
use crate::clock;
use crate::uplink::outgoing::Outgoing;

/// Passes a request to the local Ollama.
pub async fn any_api(State(app): State<Arc<App>>, request: Request) -> Response {
    let began = clock::now();
    app.passed_on("local", pass_on(&app, request).await, began)
}

async fn pass_on(app: &App, request: Request) -> Result<Response, Refusal> {
    let path = native_path(request.uri().path());
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let Ok(uri) = format!("{path}{query}").parse::<Uri>() else {
        return Err(Refusal::bad_field("invalid_path", None::<&str>, "the path cannot be passed on"));
    };
    let (method, headers) = (request.method().clone(), forwardable(request.headers()));
    let body = read_body(app.gateway.spool().bodies(), request, app.options.max_body).await?;
    let mut onward = hyper::Request::new(Outgoing::new(body.into(), None).0);
    (*onward.method_mut(), *onward.uri_mut(), *onward.headers_mut()) = (method, uri, headers);
    let answer = app.gateway.local().proxy(onward).await.map_err(|error| {
        let message = format!("{error}; this path is answered by the local Ollama alone");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "local_unavailable", message).retry_after(5)
    })?;
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = head.status;
    *response.headers_mut() = passable(&head.headers);
    Ok(response)
}

/// `/api/ollama/chat` and `/api/ollama/api/chat` are `/api/chat`; `/api/ollama/v1/x` and
/// `/api/ollama/chat/completions` are its OpenAI side.
fn native_path(path: &str) -> String {
    let Some(rest) = path.strip_prefix("/api/ollama/") else { return path.to_owned() };
    let rest = rest.trim_start_matches('/');
    if rest.starts_with("v1/") || rest.starts_with("api/") {
        format!("/{rest}")
    } else if rest == "chat/completions" {
        "/v1/chat/completions".to_owned()
    } else {
        format!("/api/{rest}")
    }
}

#[cfg(test)]
mod tests {
    use super::native_path;

    #[test]
    fn every_name_leads_to_the_native_one() {
        for (from, to) in [
            ("/api/chat", "/api/chat"),
            ("/api/ollama/chat", "/api/chat"),
            ("/api/ollama/api/tags", "/api/tags"),
            ("/api/ollama/v1/models", "/v1/models"),
            ("/api/ollama/chat/completions", "/v1/chat/completions"),
        ] {
            assert_eq!(native_path(from), to);
        }
    }
}
