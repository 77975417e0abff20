//! What clients did and saw: every operation with its beginning and end, the bodies they wrote, and the trace of a run.
//!
//! A write is known by a number of its own, which its object carries in a header; so a reader knows whose content it should have.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use garage_model::digest::{ChecksumAlgorithm, Digests};
use garage_model::object::ObjectMeta;
use garage_types::Random;
use tokio::time::Instant;

use crate::linear::{Action, Judgement, Operation, Value, judge};

/// The header that names the write.
pub const WRITE_HEADER: &str = "x-amz-meta-write";

/// One write under way, to be ended by [`History::acknowledged`] or left in doubt.
#[derive(Clone, Copy, Debug)]
pub struct Begun(usize);

thread_local! {
    /// When this thread's run began, for log lines.
    static STARTED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Time of this thread's run.
pub fn elapsed() -> Duration {
    // Outside of a runtime there is no virtual time.
    match (STARTED.get(), tokio::runtime::Handle::try_current()) {
        (Some(started), Ok(_)) => started.elapsed(),
        _ => Duration::ZERO,
    }
}

pub struct History {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: u64,
    operations: Vec<(String, Operation)>,
    bodies: BTreeMap<u64, Bytes>,
    last_write: u64,
    trace: Vec<String>,
    violations: Vec<String>,
    /// Writes of uploads whose abortion was acknowledged: never to be seen.
    aborted: BTreeSet<u64>,
    acknowledged: u64,
    in_doubt: u64,
    reads: u64,
    /// Which reads must be explained.
    judged: Judged,
}

/// Which reads must be explained.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Judged {
    #[default]
    All,
    /// None yet: where one copy answers a read, it may be an old one.
    None,
    /// Those that began then or later: all copies are equal again.
    From(u64),
}

impl State {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

/// How much happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub acknowledged: u64,
    pub in_doubt: u64,
    pub reads: u64,
}

impl History {
    pub fn new() -> Self {
        STARTED.set(Some(Instant::now()));
        History { started: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on reads may see what is old; what they see must be whole all the same.
    pub fn reads_promise_nothing_until_told(&self) {
        self.state().judged = Judged::None;
    }

    /// From now on reads must see what was acknowledged, in any consistency mode.
    pub fn reads_promise_all(&self) {
        let mut state = self.state();
        if state.judged == Judged::None {
            state.judged = Judged::From(state.tick());
        }
    }

    /// Whether a read may see what is old.
    pub fn may_be_old(&self) -> bool {
        self.state().judged == Judged::None
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: impl AsRef<str>) {
        let at = self.started.elapsed();
        let line = without_stream_names(line.as_ref());
        self.state().trace.push(format!("{:>9.3}s {line}", at.as_secs_f64()));
    }

    /// Something that must never happen has.
    pub fn violation(&self, what: impl AsRef<str>) {
        self.note(format!("VIOLATION {}", what.as_ref()));
        self.state().violations.push(what.as_ref().to_owned());
    }

    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }

    pub fn tally(&self) -> Tally {
        let state = self.state();
        let in_doubt = state.in_doubt;
        Tally { acknowledged: state.acknowledged, in_doubt, reads: state.reads }
    }

    /// A number for a new write of this body.
    pub fn new_write(&self, body: Bytes) -> u64 {
        let mut state = self.state();
        state.last_write += 1;
        let write = state.last_write;
        state.bodies.insert(write, body);
        write
    }

    pub fn body(&self, write: u64) -> Option<Bytes> {
        self.state().bodies.get(&write).cloned()
    }

    /// A body that somebody wrote before.
    pub fn some_body(&self, random: &dyn Random) -> Option<Bytes> {
        let state = self.state();
        let count = state.bodies.len() as u64;
        (count > 0).then(|| state.bodies.values().nth(random.below(count) as usize).cloned())?
    }

    /// Every write that was tried on a key.
    pub fn writes_to(&self, key: &str) -> Vec<u64> {
        let state = self.state();
        let tried = state.operations.iter().filter(|(name, _operation)| name == key);
        let written = tried.filter_map(|(_name, operation)| match operation.action {
            Action::Write(written) => written,
            Action::Read(_) => None,
        });
        written.collect()
    }

    pub fn set_body(&self, write: u64, body: Bytes) {
        self.state().bodies.insert(write, body);
    }

    /// A write begins; until it is acknowledged it is in doubt.
    pub fn begin(&self, key: &str, written: Value) -> Begun {
        let mut state = self.state();
        let begun = state.tick();
        state.operations.push((key.to_owned(), Operation { action: Action::Write(written), begun, ended: None }));
        Begun(state.operations.len() - 1)
    }

    pub fn acknowledged(&self, write: Begun) {
        let mut state = self.state();
        let now = state.tick();
        let operation = &mut state.operations[write.0].1;
        if operation.ended.is_none() {
            operation.ended = Some(now);
            state.acknowledged += 1;
        }
    }

    pub fn aborted(&self, write: u64) {
        self.state().aborted.insert(write);
    }

    pub fn left_in_doubt(&self) {
        self.state().in_doubt += 1;
    }

    /// The moment at which a read begins.
    pub fn now(&self) -> u64 {
        self.state().tick()
    }

    /// A read that began at `begun` has its answer.
    pub fn saw(&self, key: &str, value: Value, begun: u64) {
        let mut state = self.state();
        let ended = Some(state.tick());
        state.reads += 1;
        state.operations.push((key.to_owned(), Operation { action: Action::Read(value), begun, ended }));
    }

    /// What a page that was asked for at `begun` says of a key, by the ETag it has there. A listing names no write; of several with
    /// the same bytes it may be any.
    pub fn saw_listed(&self, key: &str, etag: Option<&str>, begun: u64) {
        let Some(etag) = etag else { return self.saw(key, None, begun) };
        let mut candidates =
            self.writes_to(key).into_iter().filter(|write| self.body(*write).is_some_and(|body| fits(etag, &body)));
        match (candidates.next(), candidates.next()) {
            (None, _) => self.violation(format!("{key} is listed with the ETag {etag}, which nobody wrote")),
            (Some(write), None) => self.saw(key, Some(write), begun),
            (Some(_), Some(_)) => {}
        }
    }

    /// Judges all keys; what cannot be explained is a violation.
    pub fn judge(&self) {
        let mut by_key: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
        for (key, operation) in &self.state().operations {
            by_key.entry(key.clone()).or_default().push(*operation);
        }
        let aborted = self.state().aborted.clone();
        let is_aborted = |value: Value| value.is_some_and(|write| aborted.contains(&write));
        let judged = self.state().judged;
        for (key, mut operations) in by_key {
            for operation in &operations {
                match operation.action {
                    Action::Read(value) if is_aborted(value) => {
                        self.violation(format!("key {key}: {value:?} was aborted, but is read"));
                    }
                    Action::Write(value) if is_aborted(value) && operation.ended.is_some() => {
                        self.violation(format!("key {key}: {value:?} was both completed and aborted"));
                    }
                    Action::Read(_) | Action::Write(_) => {}
                }
            }
            operations.retain(|operation| match (operation.action, judged) {
                (Action::Write(_), _) | (Action::Read(_), Judged::All) => true,
                (Action::Read(_), Judged::None) => false,
                (Action::Read(_), Judged::From(firm)) => operation.begun >= firm,
            });
            match judge(&operations) {
                Judgement::Explained => {}
                Judgement::GaveUp => self.note(format!("key {key}: too many orders of {} operations", operations.len())),
                Judgement::Impossible { stuck } => {
                    let mut all = operations.clone();
                    all.sort_by_key(|operation| operation.begun);
                    for operation in all {
                        self.note(format!("key {key}: {operation:?}"));
                    }
                    self.violation(format!("key {key}: no order explains what was read; stuck before {stuck:?}"));
                }
            }
        }
    }
}

fn etag_of(bytes: &[u8]) -> (String, [u8; 16]) {
    let mut digests = Digests::new(ChecksumAlgorithm::Crc64Nvme);
    digests.update(bytes);
    let digested = digests.finish();
    (digested.etag(), digested.md5)
}

/// Whether an object of these bytes can have this ETag: put in one piece, or completed of one part.
pub fn fits(etag: &str, body: &[u8]) -> bool {
    let (plain, md5) = etag_of(body);
    etag == plain || etag == format!("{}-1", etag_of(&md5).0)
}

/// The write that an object comes from.
pub fn write_of(meta: &ObjectMeta) -> Option<u64> {
    meta.headers.get(WRITE_HEADER)?.parse().ok()
}

/// The text without the multiplexer's names of streams, `0000007d/5: `, which count on through the runs of one process.
fn without_stream_names(line: &str) -> String {
    let is_name = |word: &str| {
        let mut halves = word.strip_suffix(':').unwrap_or(word).split('/');
        let hex = halves.next().is_some_and(|half| half.len() == 8 && half.bytes().all(|byte| byte.is_ascii_hexdigit()));
        hex && halves.next().is_some_and(|half| half.parse::<u32>().is_ok()) && halves.next().is_none()
    };
    line.split(' ').filter(|word| !is_name(word)).collect::<Vec<_>>().join(" ")
}
