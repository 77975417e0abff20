//! Operations on buckets and their names.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use garage_table::{Schema, Table, TableError, TableStore};
use garage_types::crdt::Deletable;
use garage_types::names::Punycode;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BucketId, BucketName, KeyId, Timestamp, chain};

use crate::alias::{AliasRow, AliasScope, AliasTable, key_of};
use crate::bucket::{BucketRow, BucketState, BucketTable, Quotas};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::KeyTable;
use crate::name_claims::NewBucket;
use crate::naming::Wanted;

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

/// A damaged row of which a list may be short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedListRow {
    pub table: &'static str,
    pub row: String,
}

/// What came of a CreateBucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    New(BucketId),
    /// The caller's own bucket has the name already.
    AlreadyOwned(BucketId),
}

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

/// How many damaged rows the other owners are asked for at once.
const ASKED_AT_ONCE: usize = 16;

/// As [`all_rows`], for lists by which nothing is decided: one damaged row must not hide all the others. It is read from the other owners;
/// while none of them has it, it is left out, and the log names it.
pub(crate) async fn readable_rows<S: Schema>(table: &Table<S>) -> Result<Vec<S::Row>, TableError> {
    let Found { mut rows, damaged } = readable_here::<S>(table.store()).await?;
    let asked = stream::iter(damaged).map(|key| async move { (table.get_by_local_key(&key).await, key) });
    let answers: Vec<_> = asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
    for (answer, key) in answers {
        match answer {
            Ok(row) => rows.extend(row),
            Err(error) => {
                let row = table.store().name_of_row(S::ID, &key);
                tracing::warn!(table = S::NAME, row, error = %chain(&error), "a damaged row is left out of a list");
            }
        }
    }
    Ok(rows)
}

/// What this node has of a full-copy table.
struct Found<R> {
    rows: Vec<R>,
    /// The local keys of rows that do not match their checksums.
    damaged: Vec<Vec<u8>>,
}

async fn readable_here<S: Schema>(tables: &TableStore) -> Result<Found<S::Row>, TableError> {
    let found = Arc::new(std::sync::Mutex::new(Found { rows: Vec::new(), damaged: Vec::new() }));
    let mut after = None;
    loop {
        let page = found.clone();
        let push = move |key: &[u8], row| {
            let mut page = page.lock().expect("nothing panics while holding the rows");
            match row {
                Ok(row) => page.rows.push(row),
                Err(TableError::DamagedRow { .. }) => page.damaged.push(key.to_vec()),
                Err(error) => return Err(error),
            }
            Ok(())
        };
        after = tables.scan_all::<S>(after, 1000, push).await?;
        if after.is_none() {
            let mut found = found.lock().expect("nothing panics while holding the rows");
            return Ok(Found { rows: std::mem::take(&mut found.rows), damaged: std::mem::take(&mut found.damaged) });
        }
    }
}

/// The buckets that exist, in the order of creation.
fn existing(rows: Vec<BucketRow>) -> Vec<Bucket> {
    let present = |row: BucketRow| match row.state {
        Deletable::Present(state) => Some(Bucket { id: row.id, state }),
        Deletable::Deleted => None,
    };
    let mut buckets: Vec<Bucket> = rows.into_iter().filter_map(present).collect();
    buckets.sort_by_key(|bucket| (bucket.state.created, bucket.id));
    buckets
}

/// The names in use, sorted.
fn in_use(rows: Vec<AliasRow>) -> Vec<Alias> {
    let used = |row: AliasRow| {
        let key = match row.scope {
            AliasScope::Global => None,
            AliasScope::Local(key) => Some(key),
        };
        row.bucket.get().map(|bucket| Alias { name: row.name, bucket, key })
    };
    let mut aliases: Vec<Alias> = rows.into_iter().filter_map(used).collect();
    aliases.sort();
    aliases
}

/// Where the names are that mean something to a key.
fn scopes_of(key: Option<&KeyId>) -> impl Iterator<Item = AliasScope> {
    key.cloned().map(AliasScope::Local).into_iter().chain([AliasScope::Global])
}

impl Garage {
    /// The bucket that a name means to a key: its own name first, then the global one, then a full id.
    ///
    /// What this node knows is enough where it leads to a bucket that takes writes. Otherwise a quorum is asked before the name is refused:
    /// another node may just have made and acknowledged the bucket, or deleted this node's and given its name to another.
    ///
    /// # Errors
    /// [`ModelError::NoSuchBucket`].
    pub async fn resolve_bucket(&self, key: Option<&KeyId>, name: &str) -> Result<Bucket, ModelError> {
        let now = self.0.clock.now();
        for scope in scopes_of(key) {
            let Some(id) = self.alias_here(&scope, name).await? else { continue };
            match self.bucket(id).await {
                Ok(bucket) if bucket.state.closing_until.get().is_none_or(|until| until <= now) => return Ok(bucket),
                Err(ModelError::NoSuchBucket(_)) if is_planted(Bug::StaleNameRefused) => {
                    return Err(ModelError::NoSuchBucket(name.to_owned()));
                }
                Ok(_) | Err(ModelError::NoSuchBucket(_)) => break,
                Err(error) => return Err(error),
            }
        }
        if let Ok(id) = name.parse::<BucketId>()
            && let Some(bucket) = self.bucket_if_there(id).await?
        {
            return Ok(bucket);
        }
        Box::pin(self.resolve_as_agreed(key, name)).await
    }

    /// As [`Garage::resolve_bucket`], as a quorum knows it.
    ///
    /// # Errors
    /// [`ModelError::NoSuchBucket`].
    pub async fn resolve_as_agreed(&self, key: Option<&KeyId>, name: &str) -> Result<Bucket, ModelError> {
        for scope in scopes_of(key) {
            let (placement, sort_key) = key_of(&scope, name);
            let row = self.0.aliases.get(placement, sort_key).await?;
            let Some(id) = row.and_then(|row| *row.bucket.get()) else { continue };
            let row = self.0.buckets.get(id.into(), Vec::new()).await?;
            if let Some(state) = row.as_ref().and_then(|row| row.state.as_option()) {
                return Ok(Bucket { id, state: state.clone() });
            }
        }
        Err(ModelError::NoSuchBucket(name.to_owned()))
    }

    async fn bucket_if_there(&self, id: BucketId) -> Result<Option<Bucket>, ModelError> {
        match self.bucket(id).await {
            Ok(bucket) => Ok(Some(bucket)),
            Err(ModelError::NoSuchBucket(_)) => Ok(None),
            Err(error) => Err(error),
        }
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
            Err(TableError::Rebuilding | TableError::DamagedRow { .. }) => self.0.aliases.get(placement, key).await?,
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

    /// All buckets that exist, in the order of creation. For decisions: a damaged row is an error.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn buckets(&self) -> Result<Vec<Bucket>, ModelError> {
        Ok(existing(all_rows::<BucketTable>(&self.0.local.tables).await?))
    }

    /// As [`Self::buckets`], for lists that people read: without those whose rows nobody can read.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn readable_buckets(&self) -> Result<Vec<Bucket>, ModelError> {
        Ok(existing(readable_rows(&self.0.buckets).await?))
    }

    /// All names in use, sorted. For decisions: a damaged row is an error.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn aliases(&self) -> Result<Vec<Alias>, ModelError> {
        Ok(in_use(all_rows::<AliasTable>(&self.0.local.tables).await?))
    }

    /// As [`Self::aliases`], for lists that people read: without those whose rows nobody can read.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn readable_aliases(&self) -> Result<Vec<Alias>, ModelError> {
        Ok(in_use(readable_rows(&self.0.aliases).await?))
    }

    /// The rows from which lists are made, and which this node knows to be damaged, by table and name; at most `limit` of each table.
    pub fn damaged_list_rows(&self, limit: usize) -> Vec<DamagedListRow> {
        let tables = [(AliasTable::ID, AliasTable::NAME), (BucketTable::ID, BucketTable::NAME), (KeyTable::ID, KeyTable::NAME)];
        let of = |(id, table)| {
            self.0.local.tables.damaged_rows_of(id, limit).into_iter().map(move |row| DamagedListRow { table, row })
        };
        tables.into_iter().flat_map(of).collect()
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

    pub fn punycode(&self) -> Punycode {
        self.0.settings.punycode
    }
}
