//! What the service manager is told (`Type=notify`): ready, reloading, stopping, one line of status, and that it is alive.
//!
//! Promises: READY only once `/readyz` would say 200; WATCHDOG only while every event loop really turns; without
//! `NOTIFY_SOCKET` nothing at all. Nothing here ever waits for the service manager.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::Status;
use super::event_loop::LoopState;

/// How often to look.
const LOOK: Duration = Duration::from_millis(100);
/// A loop that rests turns four times a second; one that has not turned for longer may still do.
const REST: Duration = Duration::from_millis(600);

/// See the module.
pub struct Systemd {
    socket: UnixDatagram,
    status: Arc<Status>,
    watchdog: Option<Duration>,
    told_ready: AtomicBool,
}

impl Systemd {
    /// The service manager that started this process, if one wants to be told.
    pub fn from_environment(status: Arc<Status>) -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let connected = || {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                _ => SocketAddr::from_pathname(&name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = connected()
            .inspect_err(|error| tracing::warn!(socket = %name.display(), %error, "the service manager cannot be told"))
            .ok()?;
        Some(Self {
            socket,
            status,
            watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()),
            told_ready: AtomicBool::new(false),
        })
    }

    fn tell(&self, what: &[NotifyState<'_>]) {
        let lines: Vec<String> = what.iter().map(ToString::to_string).collect();
        if let Err(error) = self.socket.send(lines.join("\n").as_bytes()) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }

    /// Tells what changes, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        let half = self.watchdog.map(|time| time / 2);
        let mut turns = Turns::of(&self.status.loops);
        let (mut line, mut next_ping, mut complained) = (String::new(), Instant::now(), false);
        loop {
            let now = self.line();
            if !self.told_ready.load(Ordering::Relaxed) && self.status.reasons().is_empty() {
                self.told_ready.store(true, Ordering::Relaxed);
                self.tell(&[NotifyState::Ready, NotifyState::Status(&now)]);
            } else if now != line {
                self.tell(&[NotifyState::Status(&now)]);
            }
            line = now;
            let resting = turns.resting(&self.status.loops, Instant::now(), REST.max(half.unwrap_or_default()));
            if let Some(half) = half
                && Instant::now() >= next_ping
            {
                match resting {
                    None => {
                        self.tell(&[NotifyState::Watchdog]);
                        next_ping = Instant::now() + half;
                        complained = false;
                    }
                    Some(event_loop) if !std::mem::replace(&mut complained, true) => {
                        tracing::error!(event_loop, "an event loop does not turn: the watchdog is not fed");
                    }
                    Some(_) => {}
                }
            }
            tokio::time::sleep(half.map_or(LOOK, |half| half.min(LOOK))).await;
        }
    }

    fn line(&self) -> String {
        let reasons = self.status.reasons();
        if reasons.is_empty() {
            format!("ready, source {}", self.status.source())
        } else {
            format!("not ready: {}", reasons.join("; "))
        }
    }

    /// The settings are about to be read again. Before it was ready nobody is told: the end of it would say READY.
    pub fn reloading(&self) {
        if !self.told_ready.load(Ordering::Relaxed) {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "there is no time"),
        }
    }

    /// They have been.
    pub fn reloaded(&self) {
        if self.told_ready.load(Ordering::Relaxed) {
            self.tell(&[NotifyState::Ready]);
        }
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    }
}

/// When each loop was last seen to have turned.
struct Turns(Vec<(u64, Instant)>);

impl Turns {
    fn of(loops: &[Arc<LoopState>]) -> Self {
        Self(loops.iter().map(|state| (state.turns(), Instant::now())).collect())
    }

    /// A loop that has not turned for longer than `most`, if there is one. What has ended need not turn.
    fn resting(&mut self, loops: &[Arc<LoopState>], now: Instant, most: Duration) -> Option<usize> {
        for ((turns, at), state) in self.0.iter_mut().zip(loops) {
            let seen = state.turns();
            if std::mem::replace(turns, seen) != seen || seen == u64::MAX {
                *at = now;
            }
        }
        self.0.iter().position(|(_, at)| now.duration_since(*at) > most)
    }
}
