//! What S3 clients do: puts, gets of wholes and ranges, heads, deletions, copies, listings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use garage_http::sigv4::signer::Signer;
use garage_model::key::Permissions;
use garage_types::Random;
use hyper::{Method, StatusCode};

use super::client::{Client, NoReply, Reply, Request, elements};
use super::uploads::Upload;
use crate::cluster::frontend;
use crate::cluster::machine::Machine;
use crate::cluster::network::CLIENTS_FROM;
use crate::history::{WRITE_HEADER, fits};
use crate::workload::World;
use crate::world::{BLOCK_SIZE, INLINE_MAX};

/// The name of the bucket that every scenario works in.
pub const BUCKET: &str = "pictures";
/// How often a request is sent that is answered "503, come back later".
pub(super) const ATTEMPTS_MAX: u32 = 3;

#[derive(Clone, Copy)]
enum Step {
    Put,
    Get,
    Range,
    Head,
    Delete,
    Copy,
    List,
    Create,
    Part,
    Complete,
    Abort,
}

/// How often each is chosen, in hundredths.
const MIX: [(u64, Step); 11] = [
    (22, Step::Put),
    (15, Step::Get),
    (8, Step::Range),
    (6, Step::Head),
    (9, Step::Delete),
    (8, Step::Copy),
    (9, Step::List),
    (6, Step::Create),
    (9, Step::Part),
    (6, Step::Complete),
    (2, Step::Abort),
];

/// What S3 clients share.
pub struct Work {
    pub(super) world: Arc<World>,
    signer: Signer,
    pub(super) uploads: Mutex<Vec<Arc<Mutex<Upload>>>>,
}

/// One client at one operation.
pub(super) struct Turn<'t> {
    pub name: String,
    pub client: &'t Client,
    pub machine: Arc<Machine>,
}

pub(super) fn path_of(key: &str) -> String {
    format!("/{BUCKET}/{key}")
}

impl Work {
    /// Makes a key for the bucket and waits until every machine knows it.
    pub async fn start(world: Arc<World>) -> Arc<Work> {
        let garage = world.cluster.machines[0].garage().expect("it runs");
        let key = garage.create_key("clients", None).await.unwrap();
        garage.set_permissions(&key.id, world.bucket, Permissions::ALL).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let signer = Signer {
            key_id: key.id.as_str().to_owned(),
            secret: key.state.secret.clone(),
            region: frontend::REGION.to_owned(),
            service: "s3".to_owned(),
        };
        Arc::new(Work { world, signer, uploads: Mutex::default() })
    }

    fn connected(&self, number: u64) -> Client {
        Client { network: self.world.cluster.network.clone(), place: CLIENTS_FROM + number as usize, signer: self.signer.clone() }
    }

    /// One client, from its first operation to its last.
    pub async fn client(self: Arc<Self>, number: u64, operations: usize) {
        let client = self.connected(number);
        let random = &self.world.random;
        for step in 0..operations {
            let pause_max = if random.below(6) == 0 { 4_000 } else { 100 };
            tokio::time::sleep(Duration::from_millis(random.below(pause_max))).await;
            let machines = &self.world.cluster.machines;
            let machine = machines[random.below(machines.len() as u64) as usize].clone();
            let key = self.some_key();
            let turn = Turn { name: format!("S3 client {number}.{step} on {}", machine.number), client: &client, machine };
            match self.choose() {
                Step::Put => self.put(&turn, key).await,
                Step::Get => self.get(&turn, key).await,
                Step::Range => self.get_range(&turn, key).await,
                Step::Head => drop(self.head(&turn, key).await),
                Step::Delete => self.delete(&turn, key).await,
                Step::Copy => self.copy(&turn, key).await,
                Step::List => self.list(&turn).await,
                Step::Create => self.create_upload(&turn, key).await,
                Step::Part => self.upload_part(&turn).await,
                Step::Complete => self.complete(&turn).await,
                Step::Abort => self.abort(&turn).await,
            }
        }
    }

    /// Aborts what is still open, once everything is healed.
    pub async fn end(&self) {
        let client = self.connected(u64::from(u16::MAX));
        let turn = Turn { name: "the end".to_owned(), client: &client, machine: self.world.cluster.machines[0].clone() };
        self.abort_all(&turn).await;
    }

    fn choose(&self) -> Step {
        let mut left = self.world.random.below(100);
        for (share, step) in MIX {
            if left < share {
                return step;
            }
            left -= share;
        }
        Step::Get
    }

    fn some_key(&self) -> &'static str {
        let keys = self.world.used_keys();
        keys[self.world.random.below(keys.len() as u64) as usize]
    }

    pub(super) fn new_body(&self) -> Bytes {
        let random = &self.world.random;
        let length = match random.below(3) {
            0 => random.below(INLINE_MAX as u64 + 1),
            _ => INLINE_MAX as u64 + 1 + random.below(4 * BLOCK_SIZE as u64),
        };
        let mut body = vec![0; length as usize];
        random.fill(&mut body);
        body.into()
    }

    /// Where a client hangs up that does.
    pub(super) fn some_cut(&self, body: &Bytes) -> Option<usize> {
        let hangs_up = self.world.random.below(6) == 0 && !body.is_empty();
        hangs_up.then(|| self.world.random.below(body.len() as u64) as usize)
    }

    pub(super) fn note(&self, turn: &Turn<'_>, what: &str) {
        self.world.history.note(format!("{}: {what}", turn.name));
    }

    pub(super) fn violation(&self, turn: &Turn<'_>, what: &str) {
        self.world.history.violation(format!("{}: {what}", turn.name));
    }

    /// Sends a request and notes what came of it.
    pub(super) async fn send(&self, turn: &Turn<'_>, what: &str, request: Request) -> Result<Reply, NoReply> {
        self.note(turn, what);
        let result = turn.client.send(&turn.machine, request, &self.world.random).await;
        match &result {
            Ok(reply) => self.note(turn, &format!("{what} -> {}", reply.shown())),
            Err(none) => self.note(turn, &format!("{what} -> {none:?}")),
        }
        result
    }

    /// The pause before a request is sent again.
    pub(super) async fn back_off(&self, attempt: u32) {
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
    }

    /// Sends a reading request until it is not answered with 503 any more. Returns when the last attempt began, too.
    async fn read(&self, turn: &Turn<'_>, what: &str, request: impl Fn() -> Request) -> (u64, Result<Reply, NoReply>) {
        for attempt in 1..ATTEMPTS_MAX {
            let begun = self.world.history.now();
            match self.send(turn, what, request()).await {
                Ok(reply) if reply.status == StatusCode::SERVICE_UNAVAILABLE => self.back_off(attempt).await,
                result => return (begun, result),
            }
        }
        (self.world.history.now(), self.send(turn, what, request()).await)
    }

    async fn put(&self, turn: &Turn<'_>, key: &'static str) {
        let body = self.new_body();
        for attempt in 1..=ATTEMPTS_MAX {
            // Each attempt is a write of its own: an earlier one may still come to light between two later ones.
            let write = self.world.history.new_write(body.clone());
            let cut = self.some_cut(&body);
            let request = Request::new(Method::PUT, path_of(key)).header(WRITE_HEADER, write.to_string());
            let request = request.body(body.clone()).cut(cut);
            let what = match cut {
                Some(cut) => format!("put {key} = {write} ({cut} of {} bytes)", body.len()),
                None => format!("put {key} = {write} ({} bytes)", body.len()),
            };
            if !self.write(turn, &what, key, Some(write), request).await {
                return;
            }
            self.back_off(attempt).await;
        }
    }

    /// Sends a writing request. Whether it should be sent again.
    async fn write(&self, turn: &Turn<'_>, what: &str, key: &str, value: Option<u64>, request: Request) -> bool {
        let history = &self.world.history;
        let is_cut = request.cut.is_some();
        if let Some(write) = value.filter(|_write| is_cut) {
            // Never to be seen, whatever the answer is.
            history.aborted(write);
        }
        let begun = history.begin(key, value);
        self.world.writer.send_replace(turn.machine.number);
        match self.send(turn, what, request).await {
            Ok(reply) if reply.status.is_success() && is_cut => {
                self.violation(turn, &format!("{what}: a body that broke off was acknowledged"));
                false
            }
            // Refused by what was there: nothing was written.
            Ok(reply) if matches!(reply.status, StatusCode::PRECONDITION_FAILED | StatusCode::NOT_FOUND) => false,
            Ok(reply) if reply.status.is_success() => {
                history.acknowledged(begun);
                false
            }
            _ if is_cut => false,
            Ok(reply) => {
                history.left_in_doubt();
                reply.status == StatusCode::SERVICE_UNAVAILABLE
            }
            Err(NoReply::Broken) => {
                history.left_in_doubt();
                false
            }
            Err(NoReply::Refused) => false,
        }
    }

    async fn delete(&self, turn: &Turn<'_>, key: &'static str) {
        for attempt in 1..=ATTEMPTS_MAX {
            let request = Request::new(Method::DELETE, path_of(key));
            if !self.write(turn, &format!("delete {key}"), key, None, request).await {
                return;
            }
            self.back_off(attempt).await;
        }
    }

    /// Records what a reply says the key is: the write and its bytes. `None` when there is no object, or no telling.
    fn seen(&self, turn: &Turn<'_>, key: &str, begun: u64, reply: &Reply) -> Option<(u64, Bytes)> {
        let history = &self.world.history;
        if reply.status == StatusCode::NOT_FOUND {
            history.saw(key, None, begun);
            return None;
        }
        if !reply.status.is_success() {
            return None;
        }
        let write: Option<u64> = reply.header(WRITE_HEADER).and_then(|text| text.parse().ok());
        history.saw(key, write, begun);
        let content = write.and_then(|write| Some((write, history.body(write)?)));
        if content.is_none() {
            self.violation(turn, &format!("{key} has a version that nobody wrote"));
        }
        content
    }

    async fn get(&self, turn: &Turn<'_>, key: &'static str) {
        let (begun, result) = self.read(turn, &format!("get {key}"), || Request::new(Method::GET, path_of(key))).await;
        let Ok(reply) = result else { return };
        let Some((write, expected)) = self.seen(turn, key, begun, &reply) else { return };
        let right = if reply.whole { expected == reply.body } else { expected.starts_with(&reply.body) };
        if !right {
            self.violation(turn, &format!("{key} = {write} has {} bytes of something else", reply.body.len()));
        }
    }

    async fn get_range(&self, turn: &Turn<'_>, key: &'static str) {
        let random = &self.world.random;
        let start = random.below(3 * BLOCK_SIZE as u64);
        let end = start + random.below(2 * BLOCK_SIZE as u64);
        let range = format!("bytes={start}-{end}");
        let request = || Request::new(Method::GET, path_of(key)).header("range", range.clone());
        let (begun, result) = self.read(turn, &format!("get {range} of {key}"), request).await;
        let Ok(reply) = result else { return };
        let Some((write, whole)) = self.seen(turn, key, begun, &reply) else { return };
        let end = (end + 1).min(whole.len() as u64);
        let expected = whole.get(start as usize..end as usize).unwrap_or_default();
        let told =
            reply.header("content-range") == Some(format!("bytes {start}-{}/{}", end.saturating_sub(1), whole.len()).as_str());
        let right = if reply.whole { expected == reply.body } else { expected.starts_with(&reply.body) };
        if reply.status != StatusCode::PARTIAL_CONTENT || !told || !right {
            self.violation(turn, &format!("{range} of {key} = {write} is {} bytes of something else", reply.body.len()));
        }
    }

    /// The current version and its ETag.
    async fn head(&self, turn: &Turn<'_>, key: &'static str) -> Option<(Bytes, String)> {
        let (begun, result) = self.read(turn, &format!("head {key}"), || Request::new(Method::HEAD, path_of(key))).await;
        let reply = result.ok()?;
        let (write, body) = self.seen(turn, key, begun, &reply)?;
        if reply.header("content-length") != Some(body.len().to_string().as_str()) {
            self.violation(turn, &format!("{key} = {write} has another length than {}", body.len()));
        }
        let etag = reply.header("etag")?.to_owned();
        if !fits(etag.trim_matches('"'), &body) {
            self.violation(turn, &format!("{key} = {write} has the ETag {etag} of something else"));
        }
        Some((body, etag))
    }

    async fn copy(&self, turn: &Turn<'_>, key: &'static str) {
        let source = self.some_key();
        let Some((body, etag)) = self.head(turn, source).await else { return };
        let write = self.world.history.new_write(body);
        let request = Request::new(Method::PUT, path_of(key))
            .header("x-amz-copy-source", path_of(source))
            // What was seen, or nothing.
            .header("x-amz-copy-source-if-match", etag)
            .header("x-amz-metadata-directive", "REPLACE")
            .header(WRITE_HEADER, write.to_string());
        self.write(turn, &format!("copy {source} to {key} = {write}"), key, Some(write), request).await;
    }

    /// Lists the bucket in small pages; every page is a read of the keys it covers.
    async fn list(&self, turn: &Turn<'_>) {
        let limit = 1 + self.world.random.below(3 + self.world.keys as u64 * 2 / 3);
        let mut query = format!("list-type=2&max-keys={limit}");
        let mut behind = String::new();
        loop {
            let request = || Request::new(Method::GET, format!("/{BUCKET}")).query(query.clone());
            let (begun, result) = self.read(turn, &format!("list behind {behind:?}"), request).await;
            let Ok(reply) = result else { return };
            if reply.status != StatusCode::OK || !reply.whole {
                return;
            }
            let found: BTreeMap<&str, String> = elements(reply.text(), "Contents")
                .filter_map(|item| Some((elements(item, "Key").next()?, elements(item, "ETag").next()?.replace("&quot;", ""))))
                .collect();
            self.note(turn, &format!("page {found:?}"));
            let end =
                found.keys().next_back().filter(|_| reply.element("IsTruncated") == Some("true")).map(|key| (*key).to_owned());
            if found.keys().any(|key| !self.world.used_keys().contains(key) || *key <= behind.as_str()) {
                self.violation(turn, &format!("the page behind {behind:?} has keys that do not belong there: {found:?}"));
            }
            let covered = |key: &&&str| ***key > *behind && end.as_ref().is_none_or(|end| **key <= end.as_str());
            for key in self.world.used_keys().iter().filter(covered) {
                self.world.history.saw_listed(key, found.get(key).map(String::as_str), begun);
            }
            let (Some(end), Some(token)) = (end, reply.element("NextContinuationToken")) else { return };
            query = format!("list-type=2&max-keys={limit}&continuation-token={token}");
            behind = end;
        }
    }
}
