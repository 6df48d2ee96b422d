//! The event loop: one task that owns the machine and everything it talks to.
//!
//! A turn takes what has come (at most so many messages), lets the machine work, writes to NATS first and to Postgres after,
//! and sleeps until the next timer. Nothing in a turn waits.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Sleep;

use super::fallback::{Decides, Fallback};
use super::local::unix_us;
use super::micro::{Micro, NAME};
use super::views::Views;
use crate::batch::UNDER_WAY;
use crate::batch::decide::Decider;
use crate::batch::gather::Gatherer;
use crate::batch::report::Reporter;
use crate::batch::side::Side;
use crate::config::Settings;
use crate::image::{Image, Kept};
use crate::machine::mux::Inbox;
use crate::machine::policies::Found;
use crate::machine::request::Asked;
use crate::machine::{InsideAnswer, InsideRequest, Machine, Question, Target, Undecided};
use crate::metrics::Metrics;
use crate::pg::{self, Conn, Link, Role};
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
    /// Tell what the loop has seen itself, if Postgres does not decide for it.
    Look(oneshot::Sender<Option<Views>>),
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
    decides: AtomicU8,
}

impl LoopState {
    /// Who decides.
    pub fn decides(&self) -> Decides {
        Decides::from_number(self.decides.load(Ordering::Relaxed))
    }
}

/// Who may decide.
#[derive(Clone)]
pub struct Sources {
    /// Postgres.
    pub postgres: bool,
    /// It answered a moment ago: its connections are waited for.
    pub expected: bool,
    /// The last known good image, as it comes and changes.
    pub kept: Option<watch::Receiver<Option<Kept>>>,
    /// Fixtures.
    pub fixtures: Option<Arc<Image>>,
}

impl Sources {
    /// Postgres alone.
    pub fn database() -> Self {
        Self {
            postgres: true,
            expected: false,
            kept: None,
            fixtures: None,
        }
    }

    /// Fixtures alone.
    pub fn fixtures(image: Arc<Image>) -> Self {
        Self {
            postgres: false,
            expected: false,
            kept: None,
            fixtures: Some(image),
        }
    }
}

/// Connections to Postgres.
struct Links {
    decide: Link,
    report: Link,
    side: Link,
}

/// The connection of a link, if it stands.
fn standing(link: &Link) -> Option<Arc<Conn>> {
    link.borrow().clone().filter(|conn| !conn.client.is_closed())
}

/// See the module.
pub struct EventLoop {
    machine: Machine,
    transport: Transport,
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
    idle_us: Option<u64>,
    abandoned: bool,
    done: Option<oneshot::Sender<()>>,
    leave: Option<()>,
}

/// Outcomes may take this long to reach Postgres after the last call of a drain, in microseconds.
const FLUSH_US: u64 = 5_000_000;
/// A connection that has not answered for so long, statement timeouts notwithstanding, is given up, in microseconds.
const STUCK_US: u64 = 5_000_000;
/// The same where statements may take longer.
const REPORT_STUCK_US: u64 = 15_000_000;
/// Changes of the source are logged at once, this many in a row and one more after each such time, in microseconds; those
/// beyond when they have lasted.
const QUIET_US: u64 = 5_000_000;
const CHANGES: u64 = 6;
/// How long is lasting.
const LASTING_US: u64 = 1_000_000;
/// After Postgres was too busy for a decision somebody else decides for so long, in microseconds.
const BUSY_US: u64 = 1_000_000;

impl EventLoop {
    /// Connects and subscribes.
    pub async fn start(
        settings: &Settings,
        index: usize,
        sources: Sources,
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
        let links = sources.postgres.then(|| {
            let open = |role| {
                let changed = handle.clone();
                pg::link(settings.database.clone(), role, Arc::clone(&metrics), move || {
                    let _ = changed.send(Control::Changed);
                })
            };
            Links {
                decide: open(Role::Decide),
                report: open(Role::Report),
                side: open(Role::Side),
            }
        });
        let fallback = (sources.kept.is_some() || sources.fixtures.is_some()).then(|| {
            let kept = sources.kept.clone().unwrap_or_else(|| watch::channel(None).1);
            let capacity = settings.machine.max_in_flight * 4;
            Fallback::new(kept, settings.image_max_age, sources.fixtures.clone(), capacity)
        });
        if let (Some(links), true) = (&links, sources.expected) {
            let mut decide = links.decide.clone();
            // Without it somebody else decides.
            let _ = tokio::time::timeout(Duration::from_secs(3), decide.wait_for(Option::is_some)).await;
        }
        let machine = crate::machine::MachineSettings {
            second_opinion: links.is_some() && fallback.is_some(),
            ..settings.machine.clone()
        };
        let mut machine = Machine::new(machine, inbox, Arc::clone(&metrics), fastrand::u64(..));
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
            links,
            fallback,
            decides: Decides::Nobody,
            changed_us: 0,
            told: Decides::Nobody,
            quiet_us: 0,
            busy_until_us: 0,
            declined: Vec::new(),
            gatherer: Gatherer::new(Arc::clone(&metrics)),
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
                        idle_us: None,
                        abandoned: false,
                        done: Some(done),
                        leave: Some(()),
                    });
                }
                Control::Changed => {}
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
            let (machine, declined) = (&mut self.machine, &mut self.declined);
            let elsewhere = self.fallback.is_some();
            let mut ticket = 0;
            let again = self.decider.settle(answered, now, |question, answer| {
                if let Ok(decision) = &answer {
                    ticket = decision.ticket.max(ticket);
                }
                if elsewhere && answer == Err(Undecided::Unavailable) {
                    declined.push(question.clone());
                } else {
                    machine.on_decision(question, answer, now);
                }
            });
            if !self.declined.is_empty() {
                self.busy_until_us = now + BUSY_US;
            }
            self.reporter.decided(ticket);
            self.machine.ask_again(again);
        }
        let now = self.now();
        let _ = self.reporter.poll(cx);
        let _ = self.gatherer.poll(cx, now);
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
        let now = self.now();
        self.pass_reports_on();
        let decide = self.links.as_ref().and_then(|links| standing(&links.decide));
        let side = self.links.as_ref().and_then(|links| standing(&links.side));
        let report = self.links.as_ref().and_then(|links| standing(&links.report));
        let timeout_us = self.machine.settings.decide_timeout_us;
        let slow = |since: Option<u64>| since.is_some_and(|since| now.saturating_sub(since) >= timeout_us);
        let others = self.fallback.as_ref().map_or(Decides::Nobody, Fallback::decides);
        let somebody = others != Decides::Nobody;
        // Where somebody else can decide, nothing is sent behind a batch that is late.
        let busy = now < self.busy_until_us;
        let decide = decide.filter(|conn| !somebody || !(busy || slow(self.decider.unanswered_since(conn.id))));
        let side = side.filter(|_| !somebody || !slow(self.side.unanswered_since()));
        self.decided_by(if decide.is_some() { Decides::Database } else { others }, now);
        let mut began = false;
        let (here, side_here) = (somebody && decide.is_none(), somebody && side.is_none());
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
                self.decider.ask(Arc::clone(&conn), questions, false, false, now);
                began = true;
            }
        }
        if let Some(conn) = side {
            let previews = self.machine.take_questions(true, self.batch);
            if !previews.is_empty() {
                self.decider.ask(Arc::clone(&conn), previews, true, false, now);
                began = true;
            }
            let wanted = self.machine.policies.take_wanted();
            if !wanted.is_empty() {
                self.side.policies(Arc::clone(&conn), wanted, now);
                began = true;
            }
            let facts = self.machine.take_wanted_facts();
            if !facts.is_empty() {
                self.side.facts(conn, &facts, now);
                began = true;
            }
        }
        self.ask_here(here, side_here, now);
        if let Some(conn) = report {
            self.reporter.send(&conn, now);
            began |= !self.reporter.all_applied();
            began |= self.gatherer.send(&conn, now, self.draining.is_some());
        }
        if began {
            // A future does nothing before it is polled once.
            self.take_answers(cx);
        }
    }

    /// Outcomes go to whoever decided. What Postgres did not see is gathered for it.
    fn pass_reports_on(&mut self) {
        let minute = unix_us() / 60_000_000;
        for report in self.machine.take_local_reports() {
            if let Some(engine) = self.fallback.as_mut().and_then(Fallback::last) {
                engine.report(&report);
            }
            if self.links.is_some() {
                self.gatherer.add(&report, minute);
            }
        }
        if self.machine.reports_waiting() > 0 && self.reporter.has_room() {
            self.reporter.add(self.machine.take_reports(REPORTS), minute);
        }
        for outcomes in self.reporter.take_forgotten() {
            tracing::info!(
                outcomes = outcomes.reports.len(),
                "Postgres has forgotten these calls; their outcomes go to it by name"
            );
            for report in outcomes.reports.iter() {
                self.gatherer.add(report, outcomes.minute);
            }
        }
    }

    /// Answers without Postgres: all questions, or those that Postgres leaves too long or was too busy for.
    fn ask_here(&mut self, here: bool, side_here: bool, now: u64) {
        loop {
            let mut questions = std::mem::take(&mut self.declined);
            questions.extend(self.machine.take_overdue());
            if here {
                questions.extend(self.machine.take_questions(false, self.batch));
            }
            if side_here {
                questions.extend(self.machine.take_questions(true, self.batch));
            }
            let mut policies = self.machine.take_overdue_policies();
            policies.extend(self.side.take_unavailable());
            let mut facts = Vec::new();
            if side_here {
                policies.extend(self.machine.policies.take_wanted());
                facts = self.machine.take_wanted_facts();
            }
            if questions.is_empty() && policies.is_empty() && facts.is_empty() {
                break;
            }
            for question in questions {
                let answer = self.answer_here(&question, now);
                self.machine.on_decision(&question, answer, now);
            }
            let mut local = self.fallback.as_mut().and_then(|fallback| fallback.local(now));
            for key in policies {
                let found = local.as_ref().map_or(Found::Unavailable, |local| local.policy(&key));
                self.machine.on_policy(&key, &found, now);
            }
            if let Some(local) = &mut local {
                local.facts(&mut self.machine, &facts, now);
            }
        }
        if let Some(local) = self.fallback.as_mut().and_then(Fallback::last) {
            local.tend(now);
        }
        self.send(now);
    }

    fn answer_here(&mut self, question: &Question, now: u64) -> Result<crate::machine::Decision, Undecided> {
        let Some(fallback) = &mut self.fallback else {
            return Err(Undecided::Unavailable);
        };
        let decides = fallback.decides();
        let preview = self.machine.is_preview(question);
        let answer = fallback
            .local(now)
            .ok_or(Undecided::Unavailable)
            .and_then(|local| local.answer(question, preview));
        if let Ok(decision) = &answer
            && self.links.is_some()
            && !preview
        {
            self.metrics.fallbacks.with_label_values(&[decides.as_str()]).inc();
            if let (false, "extension_circuit_open", Some(version)) =
                (decision.allowed, decision.reason.as_str(), &decision.version)
            {
                let target = Target {
                    extension_id: std::rc::Rc::clone(&question.extension_id),
                    version: std::rc::Rc::from(version.as_str()),
                    instance_id: None,
                };
                self.gatherer.refused(&target, unix_us() / 60_000_000);
            }
        }
        answer
    }

    /// Notes who decides from now on; says so where it is somebody else.
    fn decided_by(&mut self, decides: Decides, now: u64) {
        let before = std::mem::replace(&mut self.decides, decides);
        if decides == before {
            return;
        }
        self.state.decides.store(decides as u8, Ordering::Relaxed);
        if before != Decides::Nobody {
            self.metrics.source.with_label_values(&[before.as_str()]).dec();
        }
        if decides != Decides::Nobody {
            self.metrics.source.with_label_values(&[decides.as_str()]).inc();
        }
        self.changed_us = now;
        if self.quiet_us < now + CHANGES * QUIET_US {
            self.tell_who_decides(now);
        }
    }

    /// Says who decides now.
    fn tell_who_decides(&mut self, now: u64) {
        let was = std::mem::replace(&mut self.told, self.decides).as_str();
        self.quiet_us = self.quiet_us.max(now) + QUIET_US;
        let (source, event_loop) = (self.decides.as_str(), self.label.as_str());
        match self.decides {
            Decides::Database => tracing::info!(source, was, event_loop, "Postgres decides"),
            Decides::Fixtures if self.links.is_none() => tracing::info!(source, event_loop, "the fixtures decide"),
            Decides::Image => {
                tracing::warn!(
                    source,
                    was,
                    event_loop,
                    "Postgres does not answer: the last known good image decides"
                );
            }
            Decides::Fixtures => {
                tracing::warn!(
                    source,
                    was,
                    event_loop,
                    "Database unavailable, falling back to fixtures"
                );
            }
            Decides::Nobody => {
                tracing::warn!(
                    source,
                    was,
                    event_loop,
                    "Postgres does not answer, and nothing else may decide"
                );
            }
        }
    }

    /// Gives up connections that have stopped answering; their links make new ones.
    fn give_up_stuck(&self, now: u64) {
        let Some(links) = &self.links else { return };
        let stuck = |since: Option<u64>, most: u64| since.is_some_and(|since| now.saturating_sub(since) > most);
        let give_up = |conn: &Conn, role: Role| {
            tracing::warn!(
                role = role.as_str(),
                "a connection to Postgres does not answer, and is given up"
            );
            conn.reset();
        };
        if let Some(conn) = standing(&links.decide)
            && stuck(self.decider.unanswered_since(conn.id), STUCK_US)
        {
            give_up(&conn, Role::Decide);
        }
        if let Some(conn) = standing(&links.side)
            && (stuck(self.decider.unanswered_since(conn.id), STUCK_US)
                || stuck(self.side.unanswered_since(), STUCK_US))
        {
            give_up(&conn, Role::Side);
        }
        if let Some(conn) = standing(&links.report) {
            let since = self
                .reporter
                .unanswered_since(conn.id)
                .or(self.gatherer.unanswered_since());
            if stuck(since, REPORT_STUCK_US) {
                give_up(&conn, Role::Report);
            }
        }
    }

    fn tend(&mut self, now: u64) {
        if now.saturating_sub(self.tended_us) < 100_000 {
            return;
        }
        self.tended_us = now;
        self.give_up_stuck(now);
        if self.told != self.decides && now.saturating_sub(self.changed_us) >= LASTING_US {
            self.tell_who_decides(now);
        }
        let labels = &[self.label.as_str()];
        self.metrics
            .in_flight
            .with_label_values(labels)
            .set(self.machine.in_flight() as i64);
        self.metrics
            .in_flight_bytes
            .with_label_values(labels)
            .set(self.machine.bytes_in_flight() as i64);
        let pending = self.reporter.outcomes() + self.machine.reports_waiting() + self.gatherer.outcomes() as usize;
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
        if self.machine.in_flight() > 0 {
            return false;
        }
        let reported = self.machine.reports_waiting() == 0
            && (self.links.is_none() || (self.reporter.all_applied() && self.gatherer.is_empty()));
        let Some(drain) = &mut self.draining else { return false };
        let idle_us = *drain.idle_us.get_or_insert(now);
        // What was never asked cannot hold a ticket; what is being asked may.
        if reported && self.decider.under_way() == 0 {
            return true;
        }
        let late = now >= idle_us + FLUSH_US;
        if late {
            let lost = self.gatherer.outcomes() + self.reporter.outcomes() as u64;
            if lost > 0 {
                self.metrics.reports_lost.inc_by(lost);
                tracing::warn!(outcomes = lost, "Postgres did not take the last outcomes");
            }
        }
        late
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
