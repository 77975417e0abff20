//! Operations on buckets and their names.

use std::sync::Arc;

use garage_table::table::Query;
use garage_table::wire::{Order, Projection};
use garage_table::{Schema, TableError, TableStore};
use garage_types::crdt::Deletable;
use garage_types::names::Punycode;
use garage_types::{BucketId, BucketName, KeyId, Timestamp};

use crate::alias::{AliasRow, AliasScope, AliasTable, key_of};
use crate::bucket::{BucketRow, BucketState, BucketTable, Quotas};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::Permissions;
use crate::name_claims::NewBucket;
use crate::naming::Wanted;
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
    /// [`ModelError::BucketName`], [`ModelError::BucketNameTaken`], [`ModelError::Conflict`].
    pub async fn create_bucket(&self, name: &str) -> Result<BucketId, ModelError> {
        self.create_bucket_owned(None, name).await
    }

    async fn create_bucket_owned(&self, owner: Option<KeyId>, name: &str) -> Result<BucketId, ModelError> {
        let name = BucketName::parse(name, self.0.settings.punycode)?;
        let bucket = BucketId::random(&*self.0.random);
        let wanted = Wanted { bucket, makes: Some(NewBucket { owner }) };
        self.claim_name(&AliasScope::Global, name.as_str(), wanted).await?;
        tracing::info!(%bucket, %name, "bucket created");
        Ok(bucket)
    }

    /// S3's CreateBucket: a bucket with a global name that the key owns.
    ///
    /// # Errors
    /// As [`Garage::create_bucket`].
    pub async fn create_bucket_for(&self, key: &KeyId, name: &str) -> Result<Created, ModelError> {
        match self.create_bucket_owned(Some(key.clone()), name).await {
            Ok(id) => Ok(Created::New(id)),
            Err(ModelError::BucketNameTaken { name, bucket: Some(id) }) => {
                // The permission may have been given through another node a moment ago.
                if self.key_as_agreed(key).await?.state.permissions(&id).owner {
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
        self.claim_name(scope, name, Wanted { bucket, makes: None }).await
    }

    /// Frees a name that was listed, unless somebody was quicker.
    pub(crate) async fn free_alias(&self, alias: &Alias) -> Result<(), ModelError> {
        match self.unset_alias(&alias.scope(), &alias.name, alias.bucket).await {
            Ok(()) | Err(ModelError::NoSuchBucket(_)) => Ok(()),
            Err(error) => Err(error),
        }
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
            self.free_alias(&alias).await?;
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
