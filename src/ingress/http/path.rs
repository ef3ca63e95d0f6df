//! The part of a path that names something, as text.

use axum::extract::{FromRequestParts, Path};
use axum::response::Response;
use hyper::http::request::Parts;

use super::refusal::Refusal;

/// What a path's `{id}` stands for, decoded; refused in JSON like everything else where that is no text.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, Response> {
        let Ok(Path(name)) = Path::from_request_parts(parts, state).await else {
            let message = "what is escaped in this path is no UTF-8; write names as the gateway gives them";
            return Err(Refusal::bad_field("invalid_path", None::<&str>, message).into_response());
        };
        Ok(Named(name))
    }
}
