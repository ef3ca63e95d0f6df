//! What `auto` stands for, decided once: at the door, for live and stored requests alike.
//!
//! Gathers what the rules look at and writes the journal line; the rules themselves are control's.

use super::Gateway;
use crate::body::Body;
use crate::body::scan::Layout;
use crate::control::auto::{AUTO, Asked, choose};
use crate::control::types::Priority;
use crate::uplink::body::Head;

/// [`AUTO`] as nearly everybody writes it in JSON; with escapes in it the body is hashed where the model is chosen.
const AUTO_WRITTEN: &[u8] = b"\"auto\"";

impl Gateway {
    /// Whether `auto` is a model here.
    pub fn has_auto(&self) -> bool {
        !self.shared.auto.is_empty()
    }

    /// Has [`Body::hash`] ready where this body asks for `auto`, whose shares are drawn by it.
    pub async fn hash_for_auto(&self, body: &Body) {
        let names_auto = |layout: &Layout| layout.get("model").is_some_and(|model| model.start == AUTO_WRITTEN);
        if self.has_auto() && body.layout().as_ref().is_ok_and(names_auto) {
            // One that cannot be read is refused where it is sent or stored.
            let _ = body.hashed().await;
        }
    }

    /// Puts the model in place of `auto`, where this request asks for it. A repeat of the same body gets the same one
    /// where shares decide.
    pub fn choose_model(&self, id: &str, head: &mut Head, body: &Body, priority: Priority) {
        if head.model != AUTO || !self.has_auto() {
            return;
        }
        let asked = Asked {
            has_picture: body.layout().as_ref().is_ok_and(|layout| layout.has_picture),
            prompt_bytes: head.prompt_bytes,
            priority,
            offline: !self.is_online(),
        };
        let number = || body.hash().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if let Some((rule, model)) = choose(&self.shared.auto, &asked, number) {
            tracing::info!(
                HOLDFAST_REQUEST_ID = id,
                HOLDFAST_REASON = "auto",
                "request {id}: auto is {model} by rule {rule}"
            );
            model.clone_into(&mut head.model);
        }
    }
}
