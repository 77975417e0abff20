//! What clients do: puts, gets, deletions, copies, uploads in parts and listings, over so few keys that they collide.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use garage_model::complete::{CompleteError, ListedPart, ListedWhole};
use garage_model::copy::CopyObject;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::get::Object;
use garage_model::list::{ListItem, ListQuery, ListStart};
use garage_model::multipart::{CreateUpload, PutPart, UploadName};
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::upload_end::CompleteUpload;
use garage_model::{Garage, ModelError};
use garage_types::random::SeededRandom;
use garage_types::{BucketId, ObjectKey, Random};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::cluster::machine::{Machine, NoAnswer};
use crate::history::{Begun, History, WRITE_HEADER, write_of};
use crate::losses::Losses;
use crate::world::{BLOCK_SIZE, INLINE_MAX};

/// Every scenario uses the first few, so that clients meet; some are prefixes of others.
pub const KEYS: [&str; 40] = [
    "a", "a/b", "b", "c/1", "c/2", "d/00", "d/01", "d/02", "d/03", "d/04", "d/05", "d/06", "d/07", "d/08", "d/09", "d/10",
    "d/11", "d/12", "d/13", "d/14", "d/15", "d/16", "d/17", "d/18", "d/19", "d/20", "d/21", "d/22", "d/23", "d/24", "d/25",
    "d/26", "d/27", "d/28", "d/29", "d/30", "d/31", "d/32", "d/33", "d/34",
];

/// How long a client waits before it hangs up.
const PATIENCE: Duration = Duration::from_secs(45);

/// How often an upload is aborted once all machines run: a claim whose holder is gone is settled within minutes.
const ABORTS_MAX: u32 = 40;
const ABORT_PAUSE: Duration = Duration::from_secs(10);

/// Aborts an upload until it has ended; returns whether it has.
pub async fn until_ended<'a>(abort: impl Fn() -> BoxFuture<'a, bool>) -> bool {
    for _try in 0..ABORTS_MAX {
        if abort().await {
            return true;
        }
        tokio::time::sleep(ABORT_PAUSE).await;
    }
    false
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Put,
    Get,
    Delete,
    Copy,
    List,
    Create,
    Part,
    Complete,
    Abort,
}

/// How often each kind of operation is chosen, in hundredths; what is missing to 100 aborts uploads.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub put: u64,
    pub get: u64,
    pub delete: u64,
    pub copy: u64,
    pub list: u64,
    pub create: u64,
    pub part: u64,
    pub complete: u64,
}

impl Mix {
    fn choose(&self, random: &dyn Random) -> Step {
        let shares = [
            (self.put, Step::Put),
            (self.get, Step::Get),
            (self.delete, Step::Delete),
            (self.copy, Step::Copy),
            (self.list, Step::List),
            (self.create, Step::Create),
            (self.part, Step::Part),
            (self.complete, Step::Complete),
        ];
        let mut left = random.below(100);
        for (share, step) in shares {
            if left < share {
                return step;
            }
            left -= share;
        }
        Step::Abort
    }
}

/// Everything the clients of a run share.
pub struct World {
    pub cluster: Cluster,
    pub bucket: BucketId,
    pub history: History,
    pub random: SeededRandom,
    /// How many of [`KEYS`] the clients use.
    pub keys: usize,
    pub mix: Mix,
    /// The longest usual delay on the network.
    pub usual_delay: Duration,
    /// The machine on which a write began last.
    pub writer: watch::Sender<usize>,
    pub uploads: Mutex<Vec<Arc<Mutex<Upload>>>>,
    pub losses: Losses,
}

/// A multipart upload as the clients know it.
pub struct Upload {
    name: UploadName,
    write: u64,
    /// Acknowledged parts.
    parts: BTreeMap<u32, StoredPart>,
    /// How often somebody tried to store each part.
    attempts: BTreeMap<u32, u32>,
    /// The completion, once anyone tried: always of the same part.
    completion: Option<(Begun, ListedPart)>,
    /// How often somebody tried to end it.
    endings: u32,
    ended: bool,
}

#[derive(Clone)]
struct StoredPart {
    etag: String,
    body: Bytes,
}

pub(crate) fn put_of(bucket: BucketId, key: &str, write: u64) -> PutObject {
    PutObject {
        bucket,
        key: ObjectKey::parse(key).unwrap(),
        headers: headers(write),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    }
}

fn headers(write: u64) -> BTreeMap<String, String> {
    BTreeMap::from([(WRITE_HEADER.to_owned(), write.to_string())])
}

/// The whole body, or why it ends early.
pub async fn body_of(garage: Garage, object: Object) -> Result<Bytes, ModelError> {
    let mut stream = garage.read_object(&object, 0..object.meta.size).await?;
    let mut body = Vec::new();
    while let Some(bytes) = stream.next().await {
        body.extend_from_slice(&bytes?);
    }
    Ok(body.into())
}

fn shown<T>(result: &Result<Result<T, ModelError>, NoAnswer>) -> String {
    match result {
        Ok(Ok(_)) => "ok".to_owned(),
        Ok(Err(error)) => garage_types::chain(error),
        Err(no_answer) => format!("{no_answer:?}"),
    }
}

impl World {
    /// One client, from its first operation to its last.
    pub async fn client(self: Arc<Self>, number: u64, operations: usize) {
        for step in 0..operations {
            // Mostly at each other's heels, now and then after a while.
            let pause_max = if self.random.below(6) == 0 { 4_000 } else { 100 };
            tokio::time::sleep(Duration::from_millis(self.random.below(pause_max))).await;
            let machine = self.cluster.machines[self.random.below(self.cluster.machines.len() as u64) as usize].clone();
            let key = self.some_key();
            let name = format!("client {number}.{step} on {}", machine.number);
            match self.mix.choose(&self.random) {
                Step::Put => self.put(&name, &machine, key).await,
                Step::Get => self.get(&name, &machine, key).await,
                Step::Delete => self.delete(&name, &machine, key).await,
                Step::Copy => self.copy(&name, &machine, key).await,
                Step::List => self.list(&name, &machine, 1 + self.random.below(3 + self.keys as u64 * 2 / 3) as usize).await,
                Step::Create => self.create_upload(&name, &machine, key).await,
                Step::Part => self.upload_part(&name, &machine).await,
                Step::Complete => self.complete(&name, &machine).await,
                Step::Abort => self.abort(&name, &machine).await,
            }
        }
    }

    pub fn used_keys(&self) -> &'static [&'static str] {
        &KEYS[..self.keys]
    }

    fn some_key(&self) -> &'static str {
        KEYS[self.random.below(self.keys as u64) as usize]
    }

    fn new_body(&self) -> Bytes {
        let length = match self.random.below(3) {
            0 => self.random.below(INLINE_MAX as u64 + 1),
            _ => INLINE_MAX as u64 + 1 + self.random.below(4 * BLOCK_SIZE as u64),
        };
        let known = self.history.some_body(&self.random).filter(|_| self.random.below(5) == 0);
        known.unwrap_or_else(|| {
            let mut body = vec![0; length as usize];
            self.random.fill(&mut body);
            body.into()
        })
    }

    fn ended<T>(&self, name: &str, write: Option<Begun>, result: &Result<Result<T, ModelError>, NoAnswer>) {
        self.history.note(format!("{name} -> {}", shown(result)));
        match (result, write) {
            (Ok(Ok(_)), Some(write)) => self.history.acknowledged(write),
            (Ok(Ok(_)), None) | (Err(NoAnswer::Off), _) => {}
            (Ok(Err(_)) | Err(NoAnswer::Broken), _) => self.history.left_in_doubt(),
        }
    }

    pub async fn put(&self, name: &str, machine: &Machine, key: &str) {
        let body = self.new_body();
        let write = self.history.new_write(body.clone());
        let name = format!("{name}: put {key} = {write} ({} bytes)", body.len());
        self.history.note(&name);
        let begun = self.history.begin(key, Some(write));
        let put = put_of(self.bucket, key, write);
        self.writer.send_replace(machine.number);
        let work = |garage: Garage| async move { garage.put_object(put, Box::new(InMemory::new(body))).await };
        let result = machine.run(PATIENCE, work).await;
        self.ended(&name, Some(begun), &result);
    }

    pub async fn delete(&self, name: &str, machine: &Machine, key: &str) {
        let name = format!("{name}: delete {key}");
        self.history.note(&name);
        let begun = self.history.begin(key, None);
        self.writer.send_replace(machine.number);
        let (bucket, object_key) = (self.bucket, ObjectKey::parse(key).unwrap());
        let work = move |garage: Garage| async move { garage.delete_object(bucket, &object_key, Preconditions::default()).await };
        let result = machine.run(PATIENCE, work).await;
        self.ended(&name, Some(begun), &result);
    }

    /// The current version, which is recorded as read.
    pub async fn look(&self, name: &str, machine: &Machine, key: &str) -> Result<Option<Object>, String> {
        let begun = self.history.now();
        let (bucket, object_key) = (self.bucket, ObjectKey::parse(key).unwrap());
        let result = machine.run(PATIENCE, move |garage| async move { garage.object(bucket, &object_key).await }).await;
        match result {
            Ok(Ok(object)) => {
                let write = write_of(&object.meta);
                self.history.note(format!("{name}: {key} is {write:?} at {:?}", object.timestamp));
                if write.is_none() {
                    self.history.violation(format!("{name}: {key} has a version that nobody wrote"));
                }
                self.history.saw(key, write, begun);
                Ok(Some(object))
            }
            Ok(Err(ModelError::NoSuchKey)) => {
                self.history.note(format!("{name}: {key} is absent"));
                self.history.saw(key, None, begun);
                Ok(None)
            }
            other => Err(shown(&other)),
        }
    }

    /// Reads a key and compares its bytes. Returns what kept it from being read.
    pub async fn get(&self, name: &str, machine: &Machine, key: &str) {
        if let Err(error) = self.try_get(name, machine, key).await {
            self.history.note(format!("{name}: get {key} -> {error}"));
        }
    }

    pub async fn try_get(&self, name: &str, machine: &Machine, key: &str) -> Result<(), String> {
        let Some(object) = self.look(name, machine, key).await? else { return Ok(()) };
        let version = object.version;
        let write = write_of(&object.meta);
        let result = machine.run(PATIENCE, |garage| body_of(garage, object)).await;
        match &result {
            Ok(Ok(body)) => {
                if write.and_then(|write| self.history.body(write)).as_ref() != Some(body) {
                    self.history.violation(format!("{name}: {key} = {write:?} has {} bytes of something else", body.len()));
                }
                Ok(())
            }
            Ok(Err(ModelError::Damaged(damage))) => {
                // A version that was superseded meanwhile may be gone; one that is still current must be whole.
                let again = self.look(name, machine, key).await?;
                if again.is_some_and(|again| again.version == version) && !self.history.may_be_old() {
                    self.history.violation(format!("{name}: {key} = {write:?} is current but not whole: {damage}"));
                }
                Err(shown(&result))
            }
            _ => Err(shown(&result)),
        }
    }

    async fn copy(&self, name: &str, machine: &Machine, key: &str) {
        let source = self.some_key();
        let name = format!("{name}: copy {source} to {key}");
        let object = match self.look(&name, machine, source).await {
            Ok(Some(object)) => object,
            Ok(None) => return,
            Err(error) => return self.history.note(format!("{name} -> {error}")),
        };
        let Some(body) = write_of(&object.meta).and_then(|write| self.history.body(write)) else { return };
        let write = self.history.new_write(body);
        let name = format!("{name} = {write}");
        self.history.note(&name);
        let begun = self.history.begin(key, Some(write));
        let copy = CopyObject { source: object, put: put_of(self.bucket, key, write), checksum: None };
        let result = machine.run(PATIENCE, |garage| async move { garage.copy_object(copy).await }).await;
        self.ended(&name, Some(begun), &result);
    }

    /// Lists the bucket in small pages; every page is a read of the keys it covers.
    pub async fn list(&self, name: &str, machine: &Machine, limit: usize) {
        if let Err(error) = self.try_list(name, machine, limit).await {
            self.history.note(format!("{name}: list -> {error}"));
        }
    }

    pub async fn try_list(&self, name: &str, machine: &Machine, limit: usize) -> Result<(), String> {
        let mut start = ListStart::Beginning;
        let mut behind = String::new();
        loop {
            let query = ListQuery { limit, start, ..ListQuery::default() };
            let (bucket, begun) = (self.bucket, self.history.now());
            let result = machine.run(PATIENCE, move |garage| async move { garage.list_objects(bucket, &query).await }).await;
            let Ok(Ok(listing)) = result else { return Err(shown(&result)) };
            let mut found = BTreeMap::new();
            for item in &listing.items {
                match item {
                    ListItem::Object(listed) => found.insert(listed.key.to_string(), listed.meta.etag.clone()),
                    ListItem::CommonPrefix(_) => None,
                };
            }
            let end = found.keys().next_back().cloned().filter(|_| listing.truncated);
            self.history.note(format!("{name}: list behind {behind:?} -> {found:?}, truncated: {}", listing.truncated));
            if found.keys().any(|key| !self.used_keys().contains(&key.as_str()) || *key <= behind) {
                self.history
                    .violation(format!("{name}: the page behind {behind:?} has keys that do not belong there: {found:?}"));
            }
            let covered = |key: &&str| **key > *behind && end.as_ref().is_none_or(|end| *key <= end.as_str());
            for key in self.used_keys().iter().filter(|key| covered(key)) {
                self.history.saw_listed(key, found.get(*key).map(String::as_str), begun);
            }
            let (Some(end), Some(last)) = (end, listing.items.last()) else { return Ok(()) };
            start = last.next_start();
            behind = end;
        }
    }

    async fn create_upload(&self, name: &str, machine: &Machine, key: &str) {
        let write = self.history.new_write(Bytes::new());
        let object_key = ObjectKey::parse(key).unwrap();
        let create =
            CreateUpload { bucket: self.bucket, key: object_key.clone(), headers: headers(write), checksum: None, owner: None };
        let result = machine.run(PATIENCE, |garage| async move { garage.create_multipart(create).await }).await;
        self.ended(&format!("{name}: create upload to {key} = {write}"), None, &result);
        let Ok(Ok(id)) = result else { return };
        let name = UploadName { bucket: self.bucket, key: object_key, id };
        let upload =
            Upload { name, write, parts: BTreeMap::new(), attempts: BTreeMap::new(), completion: None, endings: 0, ended: false };
        self.uploads.lock().unwrap().push(Arc::new(Mutex::new(upload)));
    }

    fn some_upload(&self) -> Option<Arc<Mutex<Upload>>> {
        let uploads = self.uploads.lock().unwrap();
        let open: Vec<_> = uploads.iter().filter(|upload| !upload.lock().unwrap().ended).collect();
        if open.is_empty() { None } else { Some(open[self.random.below(open.len() as u64) as usize].clone()) }
    }

    async fn upload_part(&self, name: &str, machine: &Machine) {
        let Some(upload) = self.some_upload() else { return };
        let (number, body) = (1 + self.random.below(2) as u32, self.new_body());
        let (put, name) = {
            let mut upload = upload.lock().unwrap();
            *upload.attempts.entry(number).or_default() += 1;
            let put = PutPart { upload: upload.name.clone(), number, checksum: None };
            (put, format!("{name}: part {number} of {} ({} bytes)", upload.write, body.len()))
        };
        self.history.note(&name);
        let source = Box::new(InMemory::new(body.clone()));
        let result = machine.run(PATIENCE, |garage| async move { garage.upload_part(put, source).await }).await;
        self.ended(&name, None, &result);
        if let Ok(Ok(written)) = result {
            upload.lock().unwrap().parts.insert(number, StoredPart { etag: written.etag, body });
        }
    }

    async fn complete(&self, name: &str, machine: &Machine) {
        let Some(upload) = self.some_upload() else { return };
        let Some((complete, begun, number, name)) = self.begin_completion(name, &upload) else { return };
        self.history.note(&name);
        let result = machine.run(PATIENCE, |garage| async move { garage.complete_multipart(complete).await }).await;
        let sure = {
            // Nobody else ended it, and nobody replaced the part.
            let upload = upload.lock().unwrap();
            !self.history.may_be_old() && upload.endings == 1 && upload.attempts.get(&number) == Some(&1)
        };
        match &result {
            Ok(Err(ModelError::Complete(CompleteError::InvalidPart { .. }))) if sure => {
                self.history.violation(format!("{name}: a part that was acknowledged is lost"));
            }
            Ok(Err(ModelError::NoSuchUpload)) if sure => {
                self.history.violation(format!("{name}: an upload that nobody ended is lost"));
            }
            Ok(Ok(_)) => upload.lock().unwrap().ended = true,
            _ => {}
        }
        self.ended(&name, Some(begun), &result);
    }

    fn begin_completion(&self, name: &str, upload: &Mutex<Upload>) -> Option<(CompleteUpload, Begun, u32, String)> {
        let mut upload = upload.lock().unwrap();
        if upload.completion.is_none() {
            let (number, part) = upload.parts.iter().next_back().map(|(number, part)| (*number, part.clone()))?;
            self.history.set_body(upload.write, part.body);
            let begun = self.history.begin(&upload.name.key.to_string(), Some(upload.write));
            upload.completion = Some((begun, ListedPart { number, etag: part.etag, checksums: Vec::new() }));
        }
        let (begun, part) = upload.completion.clone()?;
        upload.endings += 1;
        let number = part.number;
        let whole = ListedWhole { parts: vec![part], ..ListedWhole::default() };
        let complete = CompleteUpload { upload: upload.name.clone(), whole, preconditions: Preconditions::default() };
        let name = format!("{name}: complete {} to {}", upload.write, upload.name.key);
        Some((complete, begun, number, name))
    }

    async fn abort(&self, name: &str, machine: &Machine) {
        let Some(upload) = self.some_upload() else { return };
        let (upload_name, name) = {
            let mut upload = upload.lock().unwrap();
            upload.endings += 1;
            (upload.name.clone(), format!("{name}: abort {}", upload.write))
        };
        self.history.note(&name);
        let result = machine.run(PATIENCE, |garage| async move { garage.abort_multipart(&upload_name).await }).await;
        if let Ok(Ok(())) = result {
            let mut upload = upload.lock().unwrap();
            upload.ended = true;
            self.history.aborted(upload.write);
        }
        self.ended(&name, None, &result);
    }

    /// Aborts every upload that is not known to have ended.
    pub async fn abort_all(&self, machine: &Machine) {
        let uploads = self.uploads.lock().unwrap().clone();
        for upload in uploads {
            let (name, ended) = {
                let upload = upload.lock().unwrap();
                (upload.name.clone(), upload.ended)
            };
            let abort = || {
                let name = name.clone();
                async move {
                    let result = machine.run(PATIENCE, |garage| async move { garage.abort_multipart(&name).await }).await;
                    self.history.note(format!("abort at the end -> {}", shown(&result)));
                    matches!(result, Ok(Ok(()) | Err(ModelError::NoSuchUpload)))
                }
                .boxed()
            };
            let has_ended = ended || until_ended(abort).await;
            if !has_ended {
                self.history.violation(format!("the upload of {} cannot be ended although all machines run", name.key));
            }
        }
    }
}
