//! What `auto` stands for, decided once: at the door, for live and stored requests alike.
//!
//! Gathers what the rules look at and writes the journal line; the rules themselves are control's.

use super::Gateway;
use crate::body::Body;
use crate::control::auto::{AUTO, Asked, choose};
use crate::control::types::Priority;
use crate::uplink::body::Head;

impl Gateway {
    /// Whether `auto` is a model here.
    pub fn has_auto(&self) -> bool {
        !self.shared.auto.is_empty()
    }

    /// Puts the model in place of `auto`, where this request asks for it. A repeat of the same body gets the same one
    /// where shares decide.
    pub async fn choose_model(&self, id: &str, head: &mut Head, body: &Body, priority: Priority) {
        if head.model != AUTO || !self.has_auto() {
            return;
        }
        // One that cannot be read is refused where it is sent or stored.
        let _ = body.hashed().await;
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
