//! The event loop: one task that owns the machine and everything it talks to.
//!
//! A turn takes what has come (at most so many messages), lets the machine work, writes to NATS first and to Postgres after,
//! and sleeps until the next timer. Nothing in a turn waits.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use super::fallback::{Decides, Fallback};
use super::micro::Micro;
use super::spans::Ended;
use super::views::Views;
use crate::batch::decide::Decider;
use crate::batch::gather::Gatherer;
use crate::batch::report::Reporter;
use crate::batch::side::Side;
use crate::machine::request::Asked;
use crate::machine::{InsideAnswer, InsideRequest, Machine, Question};
use crate::metrics::Metrics;
use crate::pg::{Conn, Link};
use crate::transport::{Channel, Headers, Inbound, NatsSettings, Outbound, Subject, Transport, TransportError};
use moving::Moving;

mod apply;
mod ask;
mod moving;
mod source;
mod start;
mod tend;

pub use apply::Applied;
pub use moving::move_all;
pub use start::Sources;

/// Most messages taken in one turn.
const MESSAGES: usize = 512;

/// Orders to a loop.
pub enum Control {
    /// Take nothing new, finish what is under way until then, and say when done.
    Drain(Duration, oneshot::Sender<()>),
    /// Go by other settings.
    Apply(Box<Applied>),
    /// A connection to Postgres came or went.
    Changed,
    /// Read policies again.
    Reload,
    /// Tell what the loop has seen itself, if Postgres does not decide for it.
    Look(oneshot::Sender<Option<Views>>),
    /// Move to a connection to NATS with these settings, and tell how it went; see [`move_all`].
    Move(Box<NatsSettings>, oneshot::Sender<Result<(), TransportError>>),
    /// Answer an admin request.
    Reply(Subject, Headers, Bytes),
    /// Take a request from within the process. Without an answer the loop has ended.
    Inside(InsideRequest, oneshot::Sender<InsideAnswer>),
}

/// An admin request, handed to whoever answers it.
pub struct AdminRequest {
    /// The last token of the subject.
    pub op: String,
    /// The header `x-api-key`.
    pub key: Option<String>,
    /// The body.
    pub payload: Bytes,
    /// Where to answer.
    pub reply: Option<Subject>,
    /// The loop that will send the answer.
    pub from: mpsc::UnboundedSender<Control>,
}

/// Where a loop hands over what others see to.
#[derive(Clone)]
pub struct Outlets {
    /// Admin requests.
    pub admin: mpsc::UnboundedSender<AdminRequest>,
    /// Spans that have ended, where they are exported.
    pub spans: Option<mpsc::Sender<Ended>>,
}

/// What others may see of a loop.
#[derive(Default)]
pub struct LoopState {
    /// The subscriptions are known to the server.
    pub subscribed: AtomicBool,
    /// NATS is connected.
    pub nats: AtomicBool,
    decides: AtomicU8,
    turns: AtomicU64,
}

impl LoopState {
    /// Who decides.
    pub fn decides(&self) -> Decides {
        Decides::from_number(self.decides.load(Ordering::Relaxed))
    }

    /// How many turns it has made; it makes at least four a second, until its end: then, the greatest number.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Another turn. Only the loop itself counts.
    fn turned(&self) {
        let turns = self.turns();
        self.turns.store(turns.saturating_add(1), Ordering::Relaxed);
    }

    /// No more turns are to be expected.
    fn ended(&self) {
        self.turns.store(u64::MAX, Ordering::Relaxed);
    }
}

/// Connections to Postgres.
struct Links {
    decide: Link,
    report: Link,
    side: Link,
    /// To the primary, where a standby decides.
    merge: Option<Link>,
}

impl Links {
    /// By which outcomes go that are counted by name.
    fn by_name(&self) -> &Link {
        self.merge.as_ref().unwrap_or(&self.report)
    }
}

/// The connection of a link, if it stands.
fn standing(link: &Link) -> Option<Arc<Conn>> {
    link.borrow().clone().filter(|conn| !conn.client.is_closed())
}

/// See the module.
pub struct EventLoop {
    machine: Machine,
    transport: Transport,
    moving: Moving,
    links: Option<Links>,
    fallback: Option<Fallback>,
    decides: Decides,
    changed_us: u64,
    /// Who was said to decide.
    told: Decides,
    /// When what was said will be forgotten.
    quiet_us: u64,
    busy_until_us: u64,
    /// Questions that Postgres was too busy for.
    declined: Vec<Question>,
    gatherer: Gatherer,
    decider: Decider,
    reporter: Reporter,
    side: Side,
    micro: Micro,
    metrics: Arc<Metrics>,
    state: Arc<LoopState>,
    control: mpsc::UnboundedReceiver<Control>,
    handle: mpsc::UnboundedSender<Control>,
    outlets: Outlets,
    label: String,
    batch: usize,
    began: Instant,
    inbound: Vec<Inbound>,
    sleep: Pin<Box<Sleep>>,
    draining: Option<Drain>,
    tended_us: u64,
    inside: HashMap<u64, oneshot::Sender<InsideAnswer>>,
    inside_number: u64,
}

struct Drain {
    until_us: u64,
    idle_us: Option<u64>,
    abandoned: bool,
    done: Option<oneshot::Sender<()>>,
    /// Nothing new comes.
    left: bool,
}

impl EventLoop {
    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Runs until drained.
    pub async fn run(mut self) {
        poll_fn(|cx| self.turn(cx)).await;
        self.state.ended();
        self.transport.flush().await;
        if let Some(done) = self.draining.and_then(|drain| drain.done) {
            let _ = done.send(());
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.turned();
        self.take_control(cx);
        let more = self.take_messages(cx);
        self.take_answers(cx);
        let now = self.now();
        self.machine.on_time(now);
        self.send(now);
        self.ask(cx);
        self.tend(now);
        if self.drained(now, cx) {
            return Poll::Ready(());
        }
        self.rest(cx, more);
        Poll::Pending
    }

    fn take_control(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(order)) = self.control.poll_recv(cx) {
            match order {
                Control::Drain(time, done) => {
                    self.stop_moving();
                    let until_us = self.now() + time.as_micros() as u64;
                    self.draining = Some(Drain {
                        until_us,
                        idle_us: None,
                        abandoned: false,
                        done: Some(done),
                        left: false,
                    });
                }
                Control::Apply(applied) => self.apply(*applied),
                Control::Changed => {}
                Control::Reload => self.machine.policies.grow_old(),
                Control::Move(settings, tell) => self.move_to(*settings, tell),
                Control::Look(tell) => {
                    let now = self.now();
                    let local = match self.decides {
                        Decides::Image | Decides::Fixtures => self.fallback.as_mut().and_then(|f| f.local(now)),
                        Decides::Database | Decides::Nobody => None,
                    };
                    let _ = tell.send(local.map(|local| local.views())); // whoever asked may have gone
                }
                Control::Inside(request, answer) => {
                    self.inside_number += 1;
                    self.inside.insert(self.inside_number, answer);
                    let now = self.now();
                    self.machine.on_inside(&request, self.inside_number, now);
                }
                Control::Reply(subject, headers, payload) => {
                    let expires_us = self.now() + 10_000_000;
                    self.transport.send(Outbound {
                        subject,
                        reply: None,
                        headers,
                        payload,
                        expires_us,
                    });
                }
            }
        }
    }

    /// Whether there may be more.
    fn take_messages(&mut self, cx: &mut Context<'_>) -> bool {
        let mut inbound = std::mem::take(&mut self.inbound);
        let _ = self.transport.poll_receive(cx, &mut inbound, MESSAGES);
        let now = self.now();
        self.take_old_messages(cx, &mut inbound, now);
        let more = inbound.len() >= MESSAGES;
        self.watch_connection(cx, now);
        for message in inbound.drain(..) {
            match message.channel {
                Channel::Reply => self.machine.on_reply(&message, now),
                Channel::Invoke => self.machine.on_request(Asked::Invoke, &message, now),
                Channel::Route => self.machine.on_request(Asked::Route, &message, now),
                Channel::Micro => self.answer_micro(message, now),
                Channel::Admin => self.hand_over(message),
            }
        }
        self.inbound = inbound;
        more
    }

    fn answer_micro(&mut self, message: Inbound, now: u64) {
        let Some(reply) = message.reply else { return };
        if let Some(answer) = self.micro.answer(&message.subject, &self.machine.stats) {
            let payload = answer.to_string().into();
            let expires_us = now + 5_000_000;
            self.transport.send(Outbound {
                subject: reply,
                reply: None,
                headers: Headers::default(),
                payload,
                expires_us,
            });
        }
    }

    fn hand_over(&self, message: Inbound) {
        let op = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        let key = message.header("x-api-key").map(str::to_owned);
        let request = AdminRequest {
            op,
            key,
            payload: message.payload,
            reply: message.reply,
            from: self.handle.clone(),
        };
        let _ = self.outlets.admin.send(request); // without a receiver the process is ending
    }

    fn hand_over_spans(&mut self, now: u64) {
        let Some(queue) = &self.outlets.spans else { return };
        let mut recorded = self.machine.take_recorded().peekable();
        if recorded.peek().is_none() {
            return;
        }
        // Taken anew each time: the clock may be set while the loop runs.
        let loop_began = SystemTime::now() - Duration::from_micros(now);
        for span in recorded {
            if queue.try_send(Ended { span, loop_began }).is_err() {
                self.metrics.spans("dropped", 1);
            }
        }
    }

    /// NATS first: a reply shall leave before its report competes for the processor.
    fn send(&mut self, now: u64) {
        loop {
            let messages: Vec<Outbound> = self.machine.take_outbound().collect();
            if messages.is_empty() {
                break;
            }
            for message in messages {
                if let Some(refused) = self.transport.send(message) {
                    self.machine.on_unsent(&refused, now);
                }
            }
        }
        self.transport.send_waiting(now);
        self.hand_over_spans(now);
        for (number, answer) in self.machine.take_inside() {
            if let Some(waiting) = self.inside.remove(&number) {
                let _ = waiting.send(answer); // nobody may wait any more
            }
        }
    }

    /// Sets the alarm. With more to take, the next turn comes right after the other tasks had theirs.
    fn rest(&mut self, cx: &mut Context<'_>, more: bool) {
        if more {
            cx.waker().wake_by_ref();
            return;
        }
        let now = self.now();
        let mut next = now + 250_000;
        if let Some(due) = self.machine.next_time() {
            next = next.min(due.max(now + 500));
        }
        // Without room for them an answer of Postgres is what is waited for.
        if let Some(due) = self.machine.reports_due().filter(|_| self.reporter.has_room()) {
            next = next.min(due.max(now + 500));
        }
        if self.transport.send_waiting(now) > 0 && self.transport.connected() {
            next = next.min(now + 1_000);
        }
        if self.draining.is_some() || self.moving.is_busy() {
            next = next.min(now + 10_000);
        }
        self.sleep
            .as_mut()
            .reset((self.began + Duration::from_micros(next)).into());
        if self.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}
