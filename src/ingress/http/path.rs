//! Paths as they are asked for: the part that names something, and slashes too many.

use axum::extract::{FromRequestParts, Path};
use axum::response::Response;
use hyper::Uri;
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

/// What stands behind `/v1/` and is answered here; everything else there is an uplink's.
const OURS: [&str; 7] = ["batches", "chat", "completions", "embeddings", "files", "health", "responses"];

/// A path of the gateway's own without slashes too many, where it has such: a base URL that ends with one makes them. Under
/// `/v1/` the request would be passed on as it is, and in an outage nobody would answer or keep it.
pub fn plain(asked: &Uri) -> Option<Uri> {
    let path = asked.path();
    if !path.contains("//") && (path.len() == 1 || !path.ends_with('/')) {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is_ours = match parts[..] {
        [] | ["api", ..] => false,
        ["v1", "models"] => true,
        ["v1", first, ..] => OURS.contains(&first),
        _ => true,
    };
    let query = asked.query().map(|query| format!("?{query}")).unwrap_or_default();
    is_ours.then(|| format!("/{}{query}", parts.join("/")).parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_too_many_are_taken_from_paths_of_ours_alone() {
        for (asked, wanted) in [
            ("/v1/chat/completions/", Some("/v1/chat/completions")),
            ("//v1//chat/completions?a=b/", Some("/v1/chat/completions?a=b/")),
            ("/v1/models/", Some("/v1/models")),
            ("/holdfast/v1/status/", Some("/holdfast/v1/status")),
            ("/v1/chat/completions", None),
            ("/v1/models/org//name", None),
            ("/v1/vector_stores/", None),
            ("/api/tags/", None),
            ("/", None),
            ("//", None),
        ] {
            let plain = plain(&asked.parse().unwrap());
            assert_eq!(plain.as_ref().map(ToString::to_string).as_deref(), wanted, "{asked}");
        }
    }
}
