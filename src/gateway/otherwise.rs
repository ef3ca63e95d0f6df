//! What the driver hears where a task ends without having said it: by a panic.
//!
//! Owns nothing but that one message. An attempt's slot, its lease, its end and the lease under way hang on it.

use tokio::sync::mpsc;

use super::Input;

/// Says its message when it is dropped, unless the real one was said before.
pub(super) struct Otherwise {
    to: mpsc::UnboundedSender<Input>,
    message: Option<Input>,
}

impl Otherwise {
    /// `message` is said if nothing else is.
    pub(super) fn new(to: &mpsc::UnboundedSender<Input>, message: Input) -> Otherwise {
        Otherwise { to: to.clone(), message: Some(message) }
    }

    /// Says nothing at all: what hangs on it is done.
    pub(super) fn never(mut self) {
        self.message = None;
    }

    /// Says this in its place.
    pub(super) fn tell(mut self, message: Input) {
        self.message = Some(message);
    }
}

impl Drop for Otherwise {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            // The driver ends last; a message after that has nobody left to matter to.
            let _ = self.to.send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::event::Event;

    #[tokio::test]
    async fn a_task_that_panics_is_heard_of_once_and_one_that_does_not_too() {
        for panics in [true, false] {
            let (to, mut inbox) = mpsc::unbounded_channel();
            let task = tokio::spawn(async move {
                let end = Otherwise::new(&to, Input::Event(Event::LeaseFailed));
                assert!(!panics, "as planned");
                end.tell(Input::Event(Event::Tick));
            });
            assert_eq!(task.await.is_err(), panics);
            let wanted = if panics { Event::LeaseFailed } else { Event::Tick };
            assert!(matches!(inbox.recv().await, Some(Input::Event(event)) if event == wanted));
            assert!(inbox.recv().await.is_none());
        }
    }
}
