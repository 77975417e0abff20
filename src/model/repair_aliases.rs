//! The repair of names: those of buckets, those that keys have for buckets, and the permissions of keys agree with the buckets there are.
//!
//! A name is kept in the alias table alone and a permission in its key's row alone, so they can only disagree with the bucket or the
//! key they speak of. Must stay true: nothing is taken away unless a tombstone says that its bucket or its key was deleted. A
//! bucket that is merely missing, while a name leads to it, is made again: its objects may be there.

use std::collections::VecDeque;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_types::crdt::Deletable;
use garage_types::{BucketId, KeyId};
use garage_worker::{Status, Step, StepError, Worker, WorkerId};

use crate::alias::AliasScope;
use crate::bucket::BucketRow;
use crate::buckets::Alias;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::{Permissions, placement_of};

/// Things looked at in one step.
const STEP: usize = 20;

/// What is known of a bucket or a key, by a quorum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Present,
    Deleted,
    Missing,
}

/// What is to be done about a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Keep,
    GiveUp,
    MakeBucket,
}

/// `key`: whose name it is; [`Known::Present`] for global names.
fn judge(bucket: Known, key: Known) -> Verdict {
    match (bucket, key) {
        (Known::Deleted, _) | (_, Known::Deleted) => Verdict::GiveUp,
        (Known::Missing, _) => Verdict::MakeBucket,
        // A key that is merely missing may be imported again.
        (Known::Present, Known::Present | Known::Missing) => Verdict::Keep,
    }
}

fn known<T>(state: Option<&Deletable<T>>) -> Known {
    match state {
        Some(Deletable::Present(_)) => Known::Present,
        Some(Deletable::Deleted) => Known::Deleted,
        None => Known::Missing,
    }
}

/// What is looked at.
enum Item {
    Name(Alias),
    Permission(KeyId, BucketId),
    Bucket(BucketId),
}

struct AliasRepair {
    garage: Garage,
    /// `None` until it was listed.
    left: Option<VecDeque<Item>>,
    looked_at: u64,
    repaired: u64,
    nameless: Vec<BucketId>,
}

impl Garage {
    /// Starts the repair of names; it is followed in the list of workers.
    pub fn start_repair_of_aliases(&self) -> WorkerId {
        let repair = AliasRepair { garage: self.clone(), left: None, looked_at: 0, repaired: 0, nameless: Vec::new() };
        self.workers().start(repair)
    }

    async fn known_bucket(&self, id: BucketId) -> Result<Known, ModelError> {
        Ok(known(self.0.buckets.get(id.into(), Vec::new()).await?.as_ref().map(|row| &row.state)))
    }

    async fn known_key(&self, id: &KeyId) -> Result<Known, ModelError> {
        Ok(known(self.0.keys.get(placement_of(id), Vec::new()).await?.as_ref().map(|row| &row.state)))
    }
}

impl AliasRepair {
    async fn list(&self) -> Result<VecDeque<Item>, ModelError> {
        let mut items: VecDeque<Item> = self.garage.aliases().await?.into_iter().map(Item::Name).collect();
        for key in self.garage.keys().await? {
            let allowed = key.state.buckets.iter().filter(|(_bucket, permissions)| permissions.any());
            items.extend(allowed.map(|(bucket, _permissions)| Item::Permission(key.id.clone(), *bucket)));
        }
        // Last, when names have been put right.
        items.extend(self.garage.buckets().await?.into_iter().map(|bucket| Item::Bucket(bucket.id)));
        Ok(items)
    }

    async fn look_at(&mut self, item: &Item) -> Result<(), ModelError> {
        let garage = &self.garage;
        match item {
            Item::Name(alias) => {
                let scope = alias.scope();
                let key = match &scope {
                    AliasScope::Global => Known::Present,
                    AliasScope::Local(key) => garage.known_key(key).await?,
                };
                match judge(garage.known_bucket(alias.bucket).await?, key) {
                    Verdict::Keep => return Ok(()),
                    Verdict::GiveUp => match garage.unset_alias(&scope, &alias.name, alias.bucket).await {
                        // Somebody was quicker.
                        Ok(()) | Err(ModelError::NoSuchBucket(_)) => {}
                        Err(error) => return Err(error),
                    },
                    Verdict::MakeBucket => {
                        garage.0.buckets.merge(&BucketRow::new(alias.bucket, garage.0.clock.now())).await?;
                    }
                }
                tracing::info!(name = alias.name, bucket = %alias.bucket, "put a name right");
            }
            Item::Permission(key, bucket) => {
                if garage.known_bucket(*bucket).await? != Known::Deleted {
                    return Ok(());
                }
                garage.set_permissions(key, *bucket, Permissions::NONE).await?;
            }
            Item::Bucket(bucket) => {
                let is_named = garage.aliases().await?.iter().any(|alias| alias.bucket == *bucket);
                if !is_named {
                    self.nameless.push(*bucket);
                }
                return Ok(());
            }
        }
        self.repaired += 1;
        Ok(())
    }

    async fn work(&mut self) -> Result<Step, ModelError> {
        if self.left.is_none() {
            self.left = Some(self.list().await?);
        }
        for _item in 0..STEP {
            let Some(item) = self.left.as_mut().and_then(VecDeque::pop_front) else { return Ok(Step::Done) };
            if let Err(error) = self.look_at(&item).await {
                self.left.get_or_insert_default().push_front(item);
                return Err(error);
            }
            self.looked_at += 1;
        }
        Ok(Step::Busy)
    }
}

impl Worker for AliasRepair {
    fn name(&self) -> String {
        "Repair of aliases".to_owned()
    }

    fn status(&self) -> Status {
        let message = |bucket: &BucketId| format!("bucket {bucket} has no name: garage bucket alias {bucket} NAME");
        Status {
            progress: Some(format!("{} ({})", self.looked_at, self.repaired)),
            queue_length: self.left.as_ref().map(|left| left.len() as u64),
            messages: self.nameless.iter().map(message).collect(),
            ..Status::default()
        }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move { Ok(self.work().await?) }.boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        std::future::pending().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::{Known, Verdict, judge};

    #[test]
    fn only_what_was_deleted_loses_its_names() {
        for key in [Known::Present, Known::Missing] {
            assert_eq!(judge(Known::Present, key), Verdict::Keep);
            assert_eq!(judge(Known::Missing, key), Verdict::MakeBucket, "its objects may be there");
            assert_eq!(judge(Known::Deleted, key), Verdict::GiveUp);
        }
        assert_eq!(judge(Known::Present, Known::Deleted), Verdict::GiveUp);
    }
}
