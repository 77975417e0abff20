//! Operations on buckets and their names.

use std::sync::Arc;

use garage_table::table::Query;
use garage_table::wire::{Order, Projection, Verdict};
use garage_table::{Schema, TableError, TableStore};
use garage_types::crdt::{Deletable, Lww};
use garage_types::names::Punycode;
use garage_types::{BucketId, BucketName, KeyId, Timestamp, chain};

use crate::alias::{AliasRow, AliasScope, AliasTable, key_of};
use crate::bucket::{BucketRow, BucketState, BucketTable, Quotas};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::Permissions;
use crate::object::IndexShard;

/// A bucket that exists.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub id: BucketId,
    pub state: BucketState,
}

/// A name of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alias {
    pub name: String,
    pub bucket: BucketId,
    /// The key whose local name it is; `None` for a global one.
    pub key: Option<KeyId>,
}

impl Alias {
    pub fn scope(&self) -> AliasScope {
        self.key.clone().map_or(AliasScope::Global, AliasScope::Local)
    }
}

/// What came of a CreateBucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    New(BucketId),
    /// The caller's own bucket has the name already.
    AlreadyOwned(BucketId),
}

/// How long a bucket refuses writes while its deletion is checked.
const CLOSING_MS: u64 = 60_000;

/// Every row this node has of a full-copy table.
pub(crate) async fn all_rows<S: Schema>(tables: &TableStore) -> Result<Vec<S::Row>, TableError> {
    let rows = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut after = None;
    loop {
        let page = rows.clone();
        let push = move |row| page.lock().expect("nothing panics while holding the rows").push(row);
        after = tables.scan::<S>(after, 1000, push).await?;
        if after.is_none() {
            let mut rows = rows.lock().expect("nothing panics while holding the rows");
            return Ok(std::mem::take(&mut rows));
        }
    }
}

impl Garage {
    /// The bucket that a name means to a key: its own name first, then the global one, then a full id.
    ///
    /// A name that means nothing here is asked of a quorum before it is refused: a bucket that another node has just made, and
    /// acknowledged, may not have come here yet.
    ///
    /// # Errors
    /// [`ModelError::NoSuchBucket`].
    pub async fn resolve_bucket(&self, key: Option<&KeyId>, name: &str) -> Result<Bucket, ModelError> {
        let scopes = || key.cloned().map(AliasScope::Local).into_iter().chain([AliasScope::Global]);
        for scope in scopes() {
            if let Some(id) = self.alias_here(&scope, name).await? {
                return self.bucket(id).await;
            }
        }
        if let Ok(id) = name.parse::<BucketId>() {
            return self.bucket(id).await;
        }
        for scope in scopes() {
            let (placement, key) = key_of(&scope, name);
            let row = self.0.aliases.get(placement, key).await?;
            if let Some(id) = row.and_then(|row| *row.bucket.get()) {
                return self.bucket(id).await;
            }
        }
        Err(ModelError::NoSuchBucket(name.to_owned()))
    }

    /// What a name means; a quorum is asked when it means nothing here.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn alias_target(&self, scope: &AliasScope, name: &str) -> Result<Option<BucketId>, ModelError> {
        if let Some(id) = self.alias_here(scope, name).await? {
            return Ok(Some(id));
        }
        let (placement, key) = key_of(scope, name);
        Ok(self.0.aliases.get(placement, key).await?.and_then(|row| *row.bucket.get()))
    }

    /// What a name means on this node, from memory when it has not changed.
    async fn alias_here(&self, scope: &AliasScope, name: &str) -> Result<Option<BucketId>, ModelError> {
        let cache_key = (scope.clone(), name.to_owned());
        if let Some(known) = self.0.alias_cache.get(&cache_key) {
            return Ok(known.and_then(|row| *row.bucket.get()));
        }
        let read_at = self.0.alias_cache.about_to_read();
        let (placement, key) = key_of(scope, name);
        let row = match self.0.aliases.get_here(placement, key.clone()).await {
            // What is missing here may be another bucket's name there.
            Err(TableError::Rebuilding) => self.0.aliases.get(placement, key).await?,
            here => here?,
        };
        let row = row.map(Arc::new);
        self.0.alias_cache.put(read_at, cache_key, row.clone());
        Ok(row.and_then(|row| *row.bucket.get()))
    }

    /// # Errors
    /// [`ModelError::NoSuchBucket`].
    pub async fn bucket(&self, id: BucketId) -> Result<Bucket, ModelError> {
        let row = match self.0.bucket_cache.get(&id) {
            Some(known) => known,
            None => {
                let read_at = self.0.bucket_cache.about_to_read();
                let row = self.0.buckets.get_here_first(id.into(), Vec::new()).await?.map(Arc::new);
                self.0.bucket_cache.put(read_at, id, row.clone());
                row
            }
        };
        let state = row.as_ref().and_then(|row| row.state.as_option());
        let state = state.ok_or_else(|| ModelError::NoSuchBucket(id.to_string()))?;
        Ok(Bucket { id, state: state.clone() })
    }

    /// All buckets that exist, in the order of creation.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn buckets(&self) -> Result<Vec<Bucket>, ModelError> {
        let rows = all_rows::<BucketTable>(&self.0.local.tables).await?;
        let present = |row: BucketRow| match row.state {
            Deletable::Present(state) => Some(Bucket { id: row.id, state }),
            Deletable::Deleted => None,
        };
        let mut buckets: Vec<Bucket> = rows.into_iter().filter_map(present).collect();
        buckets.sort_by_key(|bucket| (bucket.state.created, bucket.id));
        Ok(buckets)
    }

    /// All names in use, sorted.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn aliases(&self) -> Result<Vec<Alias>, ModelError> {
        let rows = all_rows::<AliasTable>(&self.0.local.tables).await?;
        let used = |row: AliasRow| {
            let key = match row.scope {
                AliasScope::Global => None,
                AliasScope::Local(key) => Some(key),
            };
            row.bucket.get().map(|bucket| Alias { name: row.name, bucket, key })
        };
        let mut aliases: Vec<Alias> = rows.into_iter().filter_map(used).collect();
        aliases.sort();
        Ok(aliases)
    }

    /// Makes a bucket with a global name, if the name is free.
    ///
    /// # Errors
    /// [`ModelError::BucketName`], [`ModelError::BucketNameTaken`].
    pub async fn create_bucket(&self, name: &str) -> Result<BucketId, ModelError> {
        let name = BucketName::parse(name, self.0.settings.punycode)?;
        let id = BucketId::random(&*self.0.random);
        let scope = AliasScope::Global;
        // While no quorum answers, nothing is left anywhere.
        let claim = self.free_name(&scope, name.as_str(), id).await?;
        // The row comes first: a name never points at a bucket that is not there. Without a name nobody knows of it.
        if let Err(error) = self.0.buckets.merge(&BucketRow::new(id, self.0.clock.now())).await {
            self.undo_bucket(id).await;
            return Err(error.into());
        }
        let claimed = match claim {
            Some(time) => self.claim_name(&scope, name.as_str(), id, time).await,
            None => Ok(()),
        };
        match claimed {
            Ok(()) => {}
            Err(error @ (ModelError::BucketNameTaken { .. } | ModelError::Conflict(_))) => {
                self.undo_bucket(id).await;
                return Err(error);
            }
            Err(error) => {
                // Some node may have the name, and somebody may use the bucket by it already: then it stays, with its name.
                if let Err(left) = self.delete_bucket(id).await {
                    tracing::warn!(bucket = %id, %name, error = %chain(&left), "a bucket that could not be made for certain is left");
                }
                return Err(error);
            }
        }
        tracing::info!(bucket = %id, %name, "bucket created");
        Ok(id)
    }

    /// Deletes a bucket that nobody can know of. What cannot be told to a quorum is told to whom it can be, as the bucket was.
    async fn undo_bucket(&self, id: BucketId) {
        if let Err(error) = self.0.buckets.merge(&BucketRow { id, state: Deletable::Deleted }).await {
            tracing::debug!(bucket = %id, error = %chain(&error), "the deletion of a bucket without a name reached no quorum");
        }
    }

    /// S3's CreateBucket: a bucket with a global name that the key owns.
    ///
    /// # Errors
    /// As [`Garage::create_bucket`].
    pub async fn create_bucket_for(&self, key: &KeyId, name: &str) -> Result<Created, ModelError> {
        let name = BucketName::parse(name, self.0.settings.punycode)?;
        match self.create_bucket(name.as_str()).await {
            Ok(id) => {
                self.set_permissions(key, id, Permissions::ALL).await?;
                Ok(Created::New(id))
            }
            Err(ModelError::BucketNameTaken { name, bucket: Some(id) }) => {
                if self.key(key).await?.state.permissions(&id).owner {
                    Ok(Created::AlreadyOwned(id))
                } else {
                    Err(ModelError::BucketNameTaken { name, bucket: Some(id) })
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a bucket a name that must be free or already the bucket's.
    ///
    /// # Errors
    /// [`ModelError::BucketNameTaken`]; [`ModelError::Conflict`] when others are claiming it at this moment.
    pub async fn set_alias(&self, scope: &AliasScope, name: &str, bucket: BucketId) -> Result<(), ModelError> {
        BucketName::parse(name, self.0.settings.punycode)?;
        match self.free_name(scope, name, bucket).await? {
            Some(time) => self.claim_name(scope, name, bucket, time).await,
            None => Ok(()),
        }
    }

    /// The time at which a name can be claimed that is free; `None` when it is the bucket's already.
    async fn free_name(&self, scope: &AliasScope, name: &str, bucket: BucketId) -> Result<Option<Timestamp>, ModelError> {
        let (placement, key) = key_of(scope, name);
        let known = self.0.aliases.get(placement, key).await?;
        match known.as_ref().and_then(|row| *row.bucket.get()) {
            Some(owner) if owner == bucket => Ok(None),
            Some(owner) => Err(ModelError::BucketNameTaken { name: name.to_owned(), bucket: Some(owner) }),
            None => Ok(Some(known.map_or(Timestamp::ZERO, |row| row.bucket.timestamp()).next().max(self.0.clock.now()))),
        }
    }

    async fn claim_name(&self, scope: &AliasScope, name: &str, bucket: BucketId, time: Timestamp) -> Result<(), ModelError> {
        let row =
            |time: Timestamp, target| AliasRow { scope: scope.clone(), name: name.to_owned(), bucket: Lww::at(time, target) };
        match self.0.aliases.commit(&row(time, Some(bucket))).await? {
            Verdict::Won => Ok(()),
            Verdict::Refused(owner) => {
                let owner = BucketId::from_slice(&owner);
                // Others hold it, here and there: whatever was claimed of it is given back.
                self.0.aliases.merge(&row(time.next(), None)).await?;
                Err(ModelError::BucketNameTaken { name: name.to_owned(), bucket: owner })
            }
            Verdict::Behind(_) => {
                Err(ModelError::Conflict(format!("the name {name} is being given to another bucket at this moment; try again")))
            }
        }
    }

    /// Gives up a name.
    ///
    /// # Errors
    /// [`ModelError::NoSuchBucket`] when nothing has the name.
    pub async fn unset_alias(&self, scope: &AliasScope, name: &str) -> Result<(), ModelError> {
        let (placement, key) = key_of(scope, name);
        let present = self.0.aliases.get(placement, key).await?;
        let Some(mut row) = present.filter(|row| row.bucket.get().is_some()) else {
            return Err(ModelError::NoSuchBucket(name.to_owned()));
        };
        row.bucket.update(self.0.clock.now(), None);
        self.0.aliases.merge(&row).await?;
        Ok(())
    }

    /// # Errors
    /// [`ModelError::NoSuchBucket`].
    pub async fn set_quotas(&self, id: BucketId, quotas: Quotas) -> Result<(), ModelError> {
        self.edit_bucket(id, |state, now| state.quotas.update(now, quotas)).await
    }

    async fn edit_bucket(&self, id: BucketId, edit: impl FnOnce(&mut BucketState, Timestamp)) -> Result<(), ModelError> {
        let missing = || ModelError::NoSuchBucket(id.to_string());
        let mut row = self.0.buckets.get(id.into(), Vec::new()).await?.ok_or_else(missing)?;
        let Deletable::Present(state) = &mut row.state else { return Err(missing()) };
        edit(state, self.0.clock.now());
        Ok(self.0.buckets.merge(&row).await?)
    }

    /// Deletes an empty bucket, its names and the permissions on it. Open multipart uploads go with it: they are no objects, and
    /// hardly any client lists them to find out why a bucket without objects cannot be deleted.
    ///
    /// # Errors
    /// [`ModelError::BucketNotEmpty`]; [`ModelError::Conflict`] while an upload is being completed.
    pub async fn delete_bucket(&self, id: BucketId) -> Result<(), ModelError> {
        self.bucket(id).await?;
        // From here on owners refuse new objects, so that none can slip in between the look and the deletion.
        let until = self.0.clock.now().plus_millis(CLOSING_MS);
        self.edit_bucket(id, |state, now| state.closing_until.update(now, Some(until))).await?;
        if !self.bucket_is_empty(id).await? {
            self.edit_bucket(id, |state, now| state.closing_until.update(now, None)).await?;
            return Err(ModelError::BucketNotEmpty);
        }
        // Before the bucket goes: afterwards nothing would lead to their parts any more.
        if let Err(error) = self.abort_all_uploads(id).await {
            self.edit_bucket(id, |state, now| state.closing_until.update(now, None)).await?;
            return Err(error);
        }
        self.0.buckets.merge(&BucketRow { id, state: Deletable::Deleted }).await?;
        for alias in self.aliases().await?.into_iter().filter(|alias| alias.bucket == id) {
            self.unset_alias(&alias.scope(), &alias.name).await?;
        }
        for key in self.keys().await?.into_iter().filter(|key| key.state.permissions(&id).any()) {
            self.set_permissions(&key.id, id, Permissions::NONE).await?;
        }
        tracing::info!(bucket = %id, "bucket deleted");
        Ok(())
    }

    async fn bucket_is_empty(&self, id: BucketId) -> Result<bool, ModelError> {
        let placement = IndexShard { bucket: id, shard: 0 }.placement();
        let mut from = Vec::new();
        loop {
            let query = Query { from, to: None, order: Order::Forward, limit: 1000, projection: Projection::Summary };
            let page = self.0.objects.range(placement, query).await?;
            if page.rows.iter().any(|row| row.live().is_some()) {
                return Ok(false);
            }
            match page.last {
                Some(mut last) => {
                    last.push(0);
                    from = last;
                }
                None => return Ok(true),
            }
        }
    }

    pub fn punycode(&self) -> Punycode {
        self.0.settings.punycode
    }
}
