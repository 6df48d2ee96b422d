//! What is recorded of a call, where its request is recorded.

use super::{CallSpec, Parent};
use crate::machine::Machine;
use crate::machine::codes::Failure;
use crate::machine::slab::Token;
use crate::machine::trace::{Recording, What};

impl Machine {
    /// The recording of a call that begins, where its request is recorded. A dry run calls nobody.
    pub(super) fn recording(&mut self, spec: &CallSpec, now: u64) -> Option<Box<Recording>> {
        let own = spec.ids.trace.recorded().filter(|_| !spec.dry_run)?;
        let span = match spec.parent {
            Parent::Client(_) => own,
            Parent::Route { .. } => self.random.u64(1..),
        };
        Some(Box::new(Recording::begin(span, now)))
    }

    /// A call has ended: what was recorded of it is handed over.
    pub(super) fn record_call(&mut self, token: Token, failure: Option<&Failure>, now: u64) {
        let Some(call) = self.calls.get_mut(token) else { return };
        let Some(recording) = call.recording.take() else { return };
        let (span, times) = (recording.span, (recording.began_us, now));
        let what = What::Invoke {
            extension_id: call.spec.extension_id.to_string(),
            kind: call.target.kind,
            recording,
        };
        self.recorded.push(call.spec.ids.span(span, times, what, failure));
    }
}
