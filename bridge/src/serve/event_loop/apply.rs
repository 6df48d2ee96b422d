//! Settings that change while the loop runs.

use std::time::Duration;

use super::EventLoop;
use crate::config::Settings;
use crate::machine::MachineSettings;

/// The settings that a loop takes over without a restart.
pub struct Applied {
    machine: MachineSettings,
    batch: usize,
    image_max_age: Duration,
}

impl Applied {
    /// From those of the process.
    pub fn of(settings: &Settings) -> Self {
        Self {
            machine: settings.machine.clone(),
            batch: settings.batch,
            image_max_age: settings.image_max_age,
        }
    }
}

impl EventLoop {
    pub(super) fn apply(&mut self, applied: Applied) {
        self.machine.set(applied.machine);
        self.batch = applied.batch;
        if let Some(fallback) = &mut self.fallback {
            fallback.set_max_age(applied.image_max_age);
        }
    }
}
