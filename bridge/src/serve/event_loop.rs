//! The event loop: one task that owns the machine and everything it talks to.
//!
//! A turn takes what has come (at most so many messages), lets the machine work, writes to NATS first and to Postgres after,
//! and sleeps until the next timer. Nothing in a turn waits.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use super::local::Local;
use super::micro::{Micro, NAME};
use crate::batch::UNDER_WAY;
use crate::batch::decide::Decider;
use crate::batch::report::Reporter;
use crate::batch::side::Side;
use crate::config::Settings;
use crate::machine::mux::Inbox;
use crate::machine::request::Asked;
use crate::machine::{InsideAnswer, InsideRequest, Machine};
use crate::metrics::Metrics;
use crate::pg::{self, Link, Role};
use crate::transport::{Channel, Headers, Inbound, Outbound, Subject, Transport, TransportError};

/// Most messages taken in one turn.
const MESSAGES: usize = 512;
/// Most outcomes in one batch.
const REPORTS: usize = 1024;

/// Orders to a loop.
pub enum Control {
    /// Take nothing new, finish what is under way until then, and say when done.
    Drain(Duration, oneshot::Sender<()>),
    /// A connection to Postgres came or went.
    Changed,
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

/// What others may see of a loop.
#[derive(Default)]
pub struct LoopState {
    /// The subscriptions are known to the server.
    pub subscribed: AtomicBool,
    /// NATS is connected.
    pub nats: AtomicBool,
    /// The source decides.
    pub source: AtomicBool,
}

enum Registry {
    Postgres { decide: Link, report: Link, side: Link },
    Local(Box<Local>),
}

/// See the module.
pub struct EventLoop {
    machine: Machine,
    transport: Transport,
    registry: Registry,
    decider: Decider,
    reporter: Reporter,
    side: Side,
    micro: Micro,
    metrics: Arc<Metrics>,
    state: Arc<LoopState>,
    control: mpsc::UnboundedReceiver<Control>,
    handle: mpsc::UnboundedSender<Control>,
    admin: mpsc::UnboundedSender<AdminRequest>,
    label: String,
    batch: usize,
    began: Instant,
    inbound: Vec<Inbound>,
    sleep: Pin<Box<Sleep>>,
    draining: Option<Drain>,
    connects: u64,
    dropped: u64,
    tended_us: u64,
    inside: HashMap<u64, oneshot::Sender<InsideAnswer>>,
    inside_number: u64,
}

struct Drain {
    until_us: u64,
    abandoned: bool,
    done: Option<oneshot::Sender<()>>,
    leave: Option<()>,
}

/// Outcomes may take this long to reach Postgres after the last call of a drain, in microseconds.
const FLUSH_US: u64 = 5_000_000;

impl EventLoop {
    /// Connects and subscribes. `local` decides without Postgres.
    pub async fn start(
        settings: &Settings,
        index: usize,
        local: Option<Local>,
        metrics: Arc<Metrics>,
        state: Arc<LoopState>,
        admin: mpsc::UnboundedSender<AdminRequest>,
    ) -> Result<(Self, mpsc::UnboundedSender<Control>), TransportError> {
        let (handle, control) = mpsc::unbounded_channel();
        let mut transport = Transport::connect(&settings.nats).await?;
        let inbox = Inbox::new(&transport.unique_inbox());
        let micro = Micro::new(&settings.prefix, super::clock::now_rfc3339());
        transport.subscribe(Channel::Reply, inbox.wildcard(), None).await?;
        for subject in micro.subjects() {
            transport.subscribe(Channel::Micro, subject, None).await?;
        }
        let registry = if let Some(local) = local {
            Registry::Local(Box::new(local))
        } else {
            let open = |role| {
                let changed = handle.clone();
                pg::link(settings.database.clone(), role, Arc::clone(&metrics), move || {
                    let _ = changed.send(Control::Changed);
                })
            };
            Registry::Postgres {
                decide: open(Role::Decide),
                report: open(Role::Report),
                side: open(Role::Side),
            }
        };
        let mut machine = Machine::new(settings.machine.clone(), inbox, Arc::clone(&metrics), fastrand::u64(..));
        machine.set_max_payload(transport.max_payload());
        let prefix = &settings.prefix;
        transport
            .subscribe(Channel::Invoke, format!("{prefix}.invoke.*"), Some(NAME))
            .await?;
        transport
            .subscribe(Channel::Route, format!("{prefix}.route"), Some(NAME))
            .await?;
        let ops = [
            "get_extension_health",
            "get_circuit_breaker_states",
            "dry_run_pipeline",
            "get_pipeline_complexity",
        ];
        for op in ops {
            transport
                .subscribe(Channel::Admin, format!("{prefix}.admin.{op}"), Some(NAME))
                .await?;
        }
        if index == 0 {
            transport
                .subscribe(Channel::Admin, format!("{prefix}.admin.reload"), None)
                .await?;
        }
        state.subscribed.store(transport.flush().await, Ordering::Relaxed);
        let this = Self {
            machine,
            registry,
            decider: Decider::default(),
            reporter: Reporter::new(Arc::clone(&metrics)),
            side: Side::default(),
            micro,
            metrics,
            state,
            control,
            handle: handle.clone(),
            admin,
            label: index.to_string(),
            batch: settings.batch,
            began: Instant::now(),
            inbound: Vec::with_capacity(MESSAGES),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            draining: None,
            connects: transport.connects(),
            dropped: 0,
            tended_us: 0,
            inside: HashMap::new(),
            inside_number: 0,
            transport,
        };
        Ok((this, handle))
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Runs until drained.
    pub async fn run(mut self) {
        poll_fn(|cx| self.turn(cx)).await;
        self.transport.flush().await;
        if let Some(done) = self.draining.and_then(|drain| drain.done) {
            let _ = done.send(());
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
                    self.machine.drain();
                    let until_us = self.now() + time.as_micros() as u64;
                    self.draining = Some(Drain {
                        until_us,
                        abandoned: false,
                        done: Some(done),
                        leave: Some(()),
                    });
                }
                Control::Changed => {}
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
        let more = inbound.len() >= MESSAGES;
        let now = self.now();
        self.watch_connection(now);
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

    fn watch_connection(&mut self, now: u64) {
        let connected = self.transport.connected();
        let connects = self.transport.connects();
        if connects > self.connects && self.connects > 0 {
            self.metrics
                .reconnects
                .with_label_values(&["nats"])
                .inc_by(connects - self.connects);
            // A short loss may have come and gone between two turns.
            self.machine.on_connection(false, now);
            self.machine.set_max_payload(self.transport.max_payload());
        }
        self.connects = connects;
        self.machine.on_connection(connected, now);
        if self.state.nats.swap(connected, Ordering::Relaxed) != connected {
            self.metrics.nats_connected.add(if connected { 1 } else { -1 });
        }
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
        let _ = self.admin.send(request); // without a receiver the process is ending
    }

    fn take_answers(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(answered)) = self.decider.poll(cx) {
            let now = self.began.elapsed().as_micros() as u64;
            if answered.rows.is_err() {
                self.metrics.batch_failures.with_label_values(&["decide"]).inc();
            }
            let machine = &mut self.machine;
            let again = self.decider.settle(answered, |question, answer| {
                machine.on_decision(question.token, answer, now);
            });
            self.machine.ask_again(again);
        }
        let _ = self.reporter.poll(cx);
        let now = self.now();
        let _ = self.side.poll(cx, &mut self.machine, now);
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
        for (number, answer) in self.machine.take_inside() {
            if let Some(waiting) = self.inside.remove(&number) {
                let _ = waiting.send(answer); // nobody may wait any more
            }
        }
    }

    fn ask(&mut self, cx: &mut Context<'_>) {
        if let Registry::Local(_) = self.registry {
            self.ask_local();
            return;
        }
        let Registry::Postgres { decide, report, side } = &self.registry else {
            return;
        };
        let (decide, report, side) = (decide.borrow().clone(), report.borrow().clone(), side.borrow().clone());
        self.state.source.store(decide.is_some(), Ordering::Relaxed);
        let mut began = false;
        if let Some(conn) = decide {
            while self.decider.under_way() < UNDER_WAY {
                let questions = self.machine.take_questions(false, self.batch);
                if questions.is_empty() {
                    break;
                }
                self.metrics
                    .batch_size
                    .with_label_values(&["decide"])
                    .observe(questions.len() as f64);
                self.decider.ask(Arc::clone(&conn), questions, false, false);
                began = true;
            }
        }
        if let Some(conn) = side {
            let previews = self.machine.take_questions(true, self.batch);
            if !previews.is_empty() {
                self.decider.ask(Arc::clone(&conn), previews, true, false);
                began = true;
            }
            let wanted = self.machine.policies.take_wanted();
            if !wanted.is_empty() {
                self.side.policies(Arc::clone(&conn), wanted);
                began = true;
            }
            let facts = self.machine.take_wanted_facts();
            if !facts.is_empty() {
                self.side.facts(conn, &facts);
                began = true;
            }
        }
        if self.machine.reports_waiting() > 0 && self.reporter.has_room() {
            let reports = self.machine.take_reports(REPORTS);
            self.reporter.add(reports);
        }
        if let Some(conn) = report {
            self.reporter.send(&conn);
            began |= !self.reporter.all_applied();
        }
        if began {
            // A future does nothing before it is polled once.
            self.take_answers(cx);
        }
    }

    fn ask_local(&mut self) {
        let Registry::Local(local) = &mut self.registry else {
            return;
        };
        let now = self.began.elapsed().as_micros() as u64;
        self.state.source.store(true, Ordering::Relaxed);
        loop {
            let mut any = false;
            for preview in [false, true] {
                for question in self.machine.take_questions(preview, self.batch) {
                    any = true;
                    let answer = local.answer(&question, preview);
                    self.machine.on_decision(question.token, answer, now);
                }
            }
            for key in self.machine.policies.take_wanted() {
                any = true;
                let found = local.policy(&key);
                self.machine.on_policy(&key, &found, now);
            }
            let facts = self.machine.take_wanted_facts();
            local.facts(&mut self.machine, &facts, now);
            for report in self.machine.take_reports(REPORTS) {
                local.report(&report);
            }
            if !any {
                break;
            }
        }
        local.tend(now);
        self.send(now);
    }

    fn tend(&mut self, now: u64) {
        if now.saturating_sub(self.tended_us) < 100_000 {
            return;
        }
        self.tended_us = now;
        let labels = &[self.label.as_str()];
        self.metrics
            .in_flight
            .with_label_values(labels)
            .set(self.machine.in_flight() as i64);
        self.metrics
            .in_flight_bytes
            .with_label_values(labels)
            .set(self.machine.bytes_in_flight() as i64);
        let pending = self.reporter.outcomes() + self.machine.reports_waiting();
        self.metrics
            .reports_pending
            .with_label_values(labels)
            .set(pending as i64);
        let dropped = self.transport.slow_consumer();
        self.metrics.dropped.inc_by(dropped - self.dropped);
        self.dropped = dropped;
    }

    fn drained(&mut self, now: u64, cx: &mut Context<'_>) -> bool {
        let Some(drain) = &mut self.draining else { return false };
        if drain.leave.take().is_some() {
            self.transport.leave_now();
            cx.waker().wake_by_ref();
            return false;
        }
        let idle = self.machine.in_flight() == 0;
        if !idle && now >= drain.until_us && !drain.abandoned {
            drain.abandoned = true;
            self.machine.abandon(now);
            self.send(now);
            self.ask(cx);
        }
        let Some(drain) = &self.draining else { return false };
        if self.machine.in_flight() > 0 {
            return false;
        }
        let reported = self.machine.reports_waiting() == 0
            && (matches!(self.registry, Registry::Local(_)) || self.reporter.all_applied());
        // What was never asked cannot hold a ticket; what is being asked may.
        (reported && self.decider.under_way() == 0) || now >= drain.until_us + FLUSH_US
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
        if self.transport.send_waiting(now) > 0 {
            next = next.min(now + 1_000);
        }
        if self.draining.is_some() {
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
