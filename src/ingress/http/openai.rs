//! The OpenAI endpoints that holdfast itself understands: reads the request, then sends it down its path.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;

use super::call::Call;
use super::{App, attach_now, cached, kept};
use crate::spool::SpoolError;

/// What is understood here, by POST.
pub const ENDPOINTS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// One of [`ENDPOINTS`].
pub async fn serve(app: Arc<App>, endpoint: &'static str, request: Request) -> Response {
    match Call::read(app, endpoint, request).await {
        Ok(call) => answer(Arc::new(call)).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Sends a checked request down its path.
pub async fn answer(call: Arc<Call>) -> Response {
    let may_repeat = call.stores_offline() && !call.app.attach.is_empty();
    let needs_hash = call.wants.respond_async || call.wants.idempotency_key.is_some() || may_repeat;
    if needs_hash && let Err(error) = call.body.hashed().await {
        return call.app.refused(&call, SpoolError::from(error).into());
    }
    // In boxes: the future of a fresh request, as most are, need not have room for the others.
    if call.wants.respond_async {
        return Box::pin(kept::respond_async(call)).await;
    }
    if let Some(key) = call.wants.idempotency_key.clone() {
        return Box::pin(kept::keyed(call, key)).await;
    }
    if may_repeat && let Some(handing) = call.app.attach.find_patiently(&call.source, call.hash(), attach_now).await {
        return Box::pin(kept::repeated(call, handing)).await;
    }
    fresh(call).await
}

/// A request that repeats none.
pub async fn fresh(call: Arc<Call>) -> Response {
    cached::answer(call).await
}
