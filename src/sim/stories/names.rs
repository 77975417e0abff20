//! Stories of buckets that come and go by name: several clients, with one key or two, make, fill and delete the same few through
//! different machines, while the network and the machines fail.
//!
//! Judged: of those who were told that a name is theirs, all name one bucket and have one key; it is found through every machine
//! afterwards, with every object that was acknowledged in it, unless somebody was told that it is deleted. A bucket whose deletion was
//! acknowledged never had an object acknowledged that nobody deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_model::buckets::Created;
use garage_model::pipeline::InMemory;
use garage_model::put::Preconditions;
use garage_model::{Garage, ModelError};
use garage_types::random::SeededRandom;
use garage_types::{BucketId, KeyId, ObjectKey, Random, chain};
use tokio::task::JoinHandle;

use super::Stage;
use crate::cluster::machine::NoAnswer;
use crate::faults::{Fault, heal, make_faults};
use crate::workload::put_of;

const PATIENCE: Duration = Duration::from_secs(45);
/// Names that are raced for in one run, one after another.
const ROUNDS: usize = 8;
/// Clients of each name.
const CLIENTS: u64 = 4;
/// How often a client that holds a name writes into its bucket.
const PUTS: u64 = 3;

const FAULTS: &[Fault] = &[
    Fault::Delay,
    Fault::LoseConnections,
    Fault::BlockOneWay,
    Fault::Tangle,
    Fault::Isolate,
    Fault::Crash,
    Fault::CrashWriter,
    Fault::CrashWriter,
    Fault::ClockJump,
];

/// What clients were told of one name.
#[derive(Default)]
struct Told {
    /// Buckets that the name was said to be of, by the keys that were told so.
    owners: BTreeSet<(BucketId, KeyId)>,
    /// Acknowledged objects that nobody tried to delete.
    objects: BTreeMap<BucketId, BTreeMap<String, Bytes>>,
    /// Deletions that somebody began, and those that were acknowledged.
    deleting: BTreeSet<BucketId>,
    deleted: BTreeSet<BucketId>,
}

/// One name, and what is known of it.
#[derive(Clone)]
struct Raced {
    stage: Stage,
    name: String,
    told: Arc<Mutex<Told>>,
}

/// Several clients claim one name at once; those who get it write into its bucket at once, through any machine.
pub(super) fn claimed_at_once(stage: Stage) -> BoxFuture<'static, ()> {
    async move { played(stage, Deletions::None).await }.boxed()
}

/// The same, with clients that delete the bucket again, through any machine.
pub(super) fn claimed_and_deleted(stage: Stage) -> BoxFuture<'static, ()> {
    async move { played(stage, Deletions::Some).await }.boxed()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deletions {
    None,
    Some,
}

async fn played(stage: Stage, deletions: Deletions) {
    let through: Vec<usize> = (0..stage.world.cluster.machines.len()).collect();
    stage.fill(&through).await;
    let keys = [key(&stage, "first").await, key(&stage, "second").await];
    stage.pause(5_000, 6_000).await;
    let faults = (!stage.is_drawn(4)).then(|| {
        let random = Arc::new(SeededRandom::new(stage.random.below(u64::MAX)));
        tokio::spawn(make_faults(stage.world.clone(), FAULTS, random))
    });
    let mut names = Vec::new();
    for round in 0..ROUNDS {
        let raced = Raced { stage: stage.clone(), name: format!("raced-{round}"), told: Arc::default() };
        let mut clients: Vec<JoinHandle<()>> = Vec::new();
        for _client in 0..CLIENTS {
            // Two of three times the clients have one key.
            let key = keys[usize::from(stage.is_drawn(3))].clone();
            clients.push(tokio::spawn(raced.clone().client(key, deletions)));
        }
        names.push(raced);
        if !stage.is_drawn(3) {
            for client in clients {
                client.await.unwrap();
            }
        }
        stage.pause(1, 2_500).await;
    }
    // Clients of the last names may still be at work.
    stage.pause(60_000, 61_000).await;
    if let Some(faults) = faults {
        faults.abort();
        drop(faults.await);
    }
    heal(&stage.world).await;
    stage.all_connected().await;
    // Past the period in which claims and deletions are settled whose node is gone.
    stage.pause(180_000, 190_000).await;
    for name in names {
        name.judge().await;
    }
}

/// A key that may do nothing yet.
async fn key(stage: &Stage, name: &'static str) -> KeyId {
    let made = stage.machine(0).run(PATIENCE, move |garage: Garage| async move { garage.create_key(name, None).await }).await;
    made.expect("the machine runs").expect("a key can be made").id
}

fn shown<T: std::fmt::Debug>(result: &Result<Result<T, ModelError>, NoAnswer>) -> String {
    match result {
        Ok(Ok(value)) => format!("{value:?}"),
        Ok(Err(error)) => chain(error),
        Err(no_answer) => format!("{no_answer:?}"),
    }
}

impl Raced {
    fn note(&self, what: &str) {
        self.stage.world.history.note(format!("{}: {what}", self.name));
    }

    fn violation(&self, what: &str) {
        self.stage.world.history.violation(format!("{}: {what}", self.name));
    }

    fn some_machine(&self) -> usize {
        self.stage.random.below(self.stage.world.cluster.machines.len() as u64) as usize
    }

    async fn client(self, key: KeyId, deletions: Deletions) {
        self.stage.pause(1, 150).await;
        let tries = 1 + self.stage.random.below(3);
        for _try in 0..tries {
            let Some(bucket) = self.create(&key).await else { continue };
            // Mostly either: a bucket with objects is not deleted.
            let deletes = deletions == Deletions::Some && !self.stage.is_drawn(3);
            let puts = if deletes && !self.stage.is_drawn(4) { 0 } else { PUTS };
            for number in 0..puts {
                self.put(&key, bucket, number).await;
                self.stage.pause(1, 50).await;
            }
            if deletes {
                self.delete(bucket).await;
            }
        }
    }

    /// Returns the bucket when it was told that the name is the key's.
    async fn create(&self, key: &KeyId) -> Option<BucketId> {
        let machine = self.some_machine();
        self.stage.world.writer.send_replace(machine);
        let (owner, name) = (key.clone(), self.name.clone());
        let work = move |garage: Garage| async move { garage.create_bucket_for(&owner, &name).await };
        let result = self.stage.machine(machine).run(PATIENCE, work).await;
        self.note(&format!("created through {machine} for {key} -> {}", shown(&result)));
        let Ok(Ok(Created::New(bucket) | Created::AlreadyOwned(bucket))) = result else { return None };
        self.told.lock().unwrap().owners.insert((bucket, key.clone()));
        Some(bucket)
    }

    /// Writes an object by the bucket's name, as a client does who has its 200.
    async fn put(&self, key: &KeyId, told: BucketId, number: u64) {
        let machine = self.some_machine();
        self.stage.world.writer.send_replace(machine);
        let object = format!("{key}-{machine}-{number}-{}", self.stage.random.below(1 << 30));
        let body = Bytes::from(object.clone().into_bytes());
        let (owner, name, content, put_key) = (key.clone(), self.name.clone(), body.clone(), object.clone());
        let work = move |garage: Garage| async move {
            let bucket = garage.resolve_bucket(Some(&owner), &name).await?.id;
            let may = garage.key_as_agreed(&owner).await?.state.permissions(&bucket).write;
            if !may {
                return Ok((bucket, false));
            }
            let put = garage_model::put::PutObject { preconditions: Preconditions::default(), ..put_of(bucket, &put_key, 0) };
            garage.put_object(put, Box::new(InMemory::new(content))).await?;
            Ok((bucket, true))
        };
        let result = self.stage.machine(machine).run(PATIENCE, work).await;
        self.note(&format!("put {object} through {machine} -> {}", shown(&result)));
        let mut told_all = self.told.lock().unwrap();
        let may_be_gone = !told_all.deleting.is_empty();
        match result {
            Ok(Ok((bucket, true))) => {
                told_all.objects.entry(bucket).or_default().insert(object, body);
            }
            Ok(Ok((_, false))) if !may_be_gone => self.violation(&format!("{key} may not write into its bucket {told}")),
            Ok(Err(ModelError::NoSuchBucket(_))) if !may_be_gone => self.violation(&format!("{told} is not found by its name")),
            _ => {}
        }
    }

    async fn delete(&self, bucket: BucketId) {
        let machine = self.some_machine();
        self.told.lock().unwrap().deleting.insert(bucket);
        self.stage.world.writer.send_replace(machine);
        let result =
            self.stage.machine(machine).run(PATIENCE, move |garage| async move { garage.delete_bucket(bucket).await }).await;
        self.note(&format!("delete {bucket} through {machine} -> {}", shown(&result)));
        if let Ok(Ok(())) = result {
            self.told.lock().unwrap().deleted.insert(bucket);
        }
    }

    /// Compares what was told with what is there now.
    async fn judge(&self) {
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        for bucket in &told.deleted {
            if let Some(objects) = told.objects.get(bucket) {
                self.violation(&format!("{bucket} was deleted, and had {:?}", objects.keys().collect::<Vec<_>>()));
            }
        }
        let kept: BTreeSet<BucketId> =
            told.owners.iter().map(|(bucket, _key)| *bucket).filter(|b| !told.deleting.contains(b)).collect();
        if kept.len() > 1 {
            self.violation(&format!("it was given to several buckets: {:?}", told.owners));
        }
        let keys: BTreeSet<&KeyId> = told.owners.iter().filter(|(b, _key)| kept.contains(b)).map(|(_bucket, key)| key).collect();
        if keys.len() > 1 {
            self.violation(&format!("it was given to several keys: {:?}", told.owners));
        }
        // A bucket with acknowledged objects cannot have been deleted.
        let full = told.objects.iter().filter(|(bucket, _)| !told.deleted.contains(bucket)).map(|(bucket, _)| *bucket);
        let there: BTreeSet<BucketId> = kept.into_iter().chain(full).collect();
        for bucket in there {
            for machine in 0..self.stage.world.cluster.machines.len() {
                self.look(machine, bucket, told.objects.get(&bucket)).await;
            }
        }
        self.ends().await;
    }

    /// Through one machine, the name leads to the bucket, and the bucket has what was acknowledged.
    async fn look(&self, machine: usize, bucket: BucketId, objects: Option<&BTreeMap<String, Bytes>>) {
        let name = self.name.clone();
        let work = move |garage: Garage| async move { garage.resolve_bucket(None, &name).await.map(|found| found.id) };
        let result = self.stage.machine(machine).run(PATIENCE, work).await;
        if !matches!(result, Ok(Ok(found)) if found == bucket) {
            self.violation(&format!("it is {bucket}, but through {machine} {}", shown(&result)));
        }
        for (key, body) in objects.into_iter().flatten() {
            let object_key = ObjectKey::parse(key).unwrap();
            let work = move |garage: Garage| async move {
                let object = garage.object(bucket, &object_key).await?;
                crate::workload::body_of(garage, object).await
            };
            let result = self.stage.machine(machine).run(PATIENCE, work).await;
            if !matches!(&result, Ok(Ok(found)) if found == body) {
                self.violation(&format!("{key} of {bucket} through {machine}: {}", shown(&result)));
            }
        }
    }

    /// Nobody works any more: the name can be had by a new bucket, or is one's that takes writes.
    async fn ends(&self) {
        let name = self.name.clone();
        let work = move |garage: Garage| async move {
            match garage.create_bucket(&name).await {
                Ok(bucket) | Err(ModelError::BucketNameTaken { bucket: Some(bucket), .. }) => {
                    let put = put_of(bucket, "the-end", 0);
                    garage.put_object(put, Box::new(InMemory::new(Bytes::from_static(b"the end")))).await.map(|_| bucket)
                }
                Err(error) => Err(error),
            }
        };
        let result = self.stage.machine(self.some_machine()).run(PATIENCE, work).await;
        self.note(&format!("at the end -> {}", shown(&result)));
        if !matches!(result, Ok(Ok(_))) {
            self.violation(&format!("at the end it is neither free nor a bucket's that takes objects: {}", shown(&result)));
        }
    }
}
