//! Rows that a node has set aside, as operators deal with them: what they are, bringing them back, letting them go.
//!
//! Must stay true: a row comes back as a write of now, judged by its owners, and only if nothing that they have supersedes it; an object
//! comes back only behind the content that it names, and content only with an object that names it.

use std::collections::BTreeSet;

use garage_table::set_aside::{Reason, SetAside};
use garage_table::wire::Verdict;
use garage_table::{Schema, Table};
use garage_types::codec::encode;
use garage_types::crdt::{Crdt, Deletable};
use garage_types::{BucketId, ObjectKey, VersionId};

use crate::alias::{AliasScope, AliasTable};
use crate::block_ref::BlockRefTable;
use crate::bucket::BucketTable;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::in_use::{Listing, VersionUse, rows_of_key};
use crate::key::KeyTable;
use crate::object::{Content, ObjectRow, ObjectState, ObjectTable};
use crate::part::PartTable;
use crate::table_ids;
use crate::upload::UploadTable;
use crate::version::{VersionContent, VersionTable};

/// Rows dealt with by one call, at most.
pub const MERGED_MAX: usize = 10_000;

/// What became of rows that were to be brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergedBack {
    /// They are rows of their owners again, and are not set aside any more.
    pub merged: u64,
    /// The owners know all they say, or have something that supersedes them with certainty: they are not set aside any more.
    pub superseded: u64,
    /// They are damaged, or what they need, or what would use them, is not there: they stay set aside.
    pub unused: u64,
    /// Of the unused, those that do not match their checksums: their bytes cannot be trusted, so they are never merged.
    pub damaged: u64,
}

/// What a row that was set aside says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// In a line: of which bucket, key, or block.
    pub subject: String,
    /// All of it, over several lines, without secrets.
    pub content: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Merged,
    /// Its owners know all it says.
    Known,
    /// Certainly: nobody misses the row, nor what belongs to it alone.
    Superseded,
    /// For now.
    Unused,
}

/// What the objects that are offered say about the rows they need.
#[derive(Default)]
struct Offer {
    objects: Vec<(SetAside, ObjectRow)>,
    keys: BTreeSet<(BucketId, ObjectKey)>,
    /// Versions of objects that are superseded.
    refused: BTreeSet<VersionId>,
}

/// Says what a row is about.
///
/// # Errors
/// [`ModelError::Table`] when the row cannot be read, [`ModelError::Damaged`] when its table is not known.
pub fn describe(aside: &SetAside) -> Result<Described, ModelError> {
    let bytes = &aside.row;
    let described = |subject: String, content: String| Ok(Described { subject, content });
    match aside.table {
        table_ids::BUCKET => {
            let row = BucketTable::decode(bytes)?;
            described(format!("bucket {}", row.id), format!("{row:#?}"))
        }
        table_ids::ALIAS => {
            let row = AliasTable::decode(bytes)?;
            let scope = match &row.scope {
                AliasScope::Global => String::new(),
                AliasScope::Local(key) => format!(" of key {key}"),
            };
            described(format!("name {}{scope}", row.name), format!("{row:#?}"))
        }
        table_ids::KEY => {
            let row = KeyTable::decode(bytes)?;
            described(format!("key {}", row.id), format!("{row:#?}"))
        }
        table_ids::OBJECT => {
            let row = ObjectTable::decode(bytes)?;
            described(format!("object {} in bucket {}", row.key, row.bucket), format!("{row:#?}"))
        }
        table_ids::UPLOAD => {
            let row = UploadTable::decode(bytes)?;
            described(format!("upload {} of {} in bucket {}", row.id, row.key, row.bucket), format!("{row:#?}"))
        }
        table_ids::PART => {
            let row = PartTable::decode(bytes)?;
            described(format!("part of upload {}", row.upload), format!("{row:#?}"))
        }
        table_ids::VERSION => {
            let row = VersionTable::decode(bytes)?;
            described(format!("content {}", row.version), format!("{row:#?}"))
        }
        table_ids::BLOCK_REF => {
            let row = BlockRefTable::decode(bytes)?;
            described(format!("block {} in content {}", row.block, row.version), format!("{row:#?}"))
        }
        other => Err(ModelError::Damaged(format!("rows of table {} were set aside, which is not known", other.0))),
    }
}

impl Garage {
    /// Brings rows back, at most [`MERGED_MAX`].
    ///
    /// # Errors
    /// [`ModelError`]; those that were brought back before stay so, and the others stay set aside.
    pub async fn merge_set_aside(&self, rows: Vec<SetAside>) -> Result<MergedBack, ModelError> {
        // Rows that are superseded are forgotten.
        self.certain().merge_set_aside_here(rows).await
    }

    async fn merge_set_aside_here(&self, rows: Vec<SetAside>) -> Result<MergedBack, ModelError> {
        let (damaged, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.reason == Reason::Damaged);
        let damaged = damaged.len() as u64;
        let mut done = MergedBack { unused: damaged, damaged, ..MergedBack::default() };
        let (objects, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.table == table_ids::OBJECT);
        let (versions, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|row| row.table == table_ids::VERSION);
        let offer = self.offer(objects, &mut done).await?;
        for aside in others.iter().filter(|row| !matches!(row.table, table_ids::BLOCK_REF)) {
            let fate = self.merge_other(aside).await?;
            self.settle_set_aside(aside, fate, &mut done).await?;
        }
        for aside in &versions {
            let fate = self.merge_version(aside, &offer).await?;
            self.settle_set_aside(aside, fate, &mut done).await?;
        }
        for aside in others.iter().filter(|row| matches!(row.table, table_ids::BLOCK_REF)) {
            let row = BlockRefTable::decode(&aside.row)?;
            // A reference without its content would keep a block for ever.
            let fate = match self.listing(row.version).await? {
                Listing::Listed => self.merge_row::<BlockRefTable>(&self.reference_table(), &row).await?,
                Listing::Deleted => Fate::Superseded,
                Listing::Absent => Fate::Unused,
            };
            self.settle_set_aside(aside, fate, &mut done).await?;
        }
        for (aside, row) in &offer.objects {
            let fate = self.merge_object(row).await?;
            self.settle_set_aside(aside, fate, &mut done).await?;
        }
        Ok(done)
    }

    /// Which objects may come back.
    async fn offer(&self, objects: Vec<SetAside>, done: &mut MergedBack) -> Result<Offer, ModelError> {
        let mut offer = Offer::default();
        for aside in objects {
            let row = ObjectTable::decode(&aside.row)?;
            let present = rows_of_key(&self.0.objects, row.bucket, &row.key).await?;
            let is_newest = present.iter().all(|other| other.age() < row.age());
            let is_known = present.iter().any(|other| other.age() == row.age());
            // Deletions are told by those who have them.
            let is_superseded = row.state == ObjectState::Tombstone || present.iter().any(|other| other.supersedes(&row));
            if is_superseded {
                offer.refused.insert(row.version);
                self.settle_set_aside(&aside, Fate::Superseded, done).await?;
            } else if is_known {
                // It is there; its content may not be.
                self.settle_set_aside(&aside, Fate::Known, done).await?;
            } else if is_newest {
                offer.keys.insert((row.bucket, row.key.clone()));
                offer.objects.push((aside, row));
            } else {
                done.unused += 1;
            }
        }
        Ok(offer)
    }

    async fn merge_version(&self, aside: &SetAside, offer: &Offer) -> Result<Fate, ModelError> {
        let row = VersionTable::decode(&aside.row)?;
        if offer.refused.contains(&row.version) || self.listing(row.version).await? == Listing::Deleted {
            return Ok(Fate::Superseded);
        }
        let used = match &row.content {
            VersionContent::Deleted => true,
            VersionContent::Segment(segment) => {
                let backlink = &segment.backlink;
                offer.keys.contains(&(backlink.bucket, backlink.key.clone()))
                    || self.version_use(row.version, backlink).await? != VersionUse::None
            }
        };
        if used { self.merge_row(&self.0.versions, &row).await } else { Ok(Fate::Unused) }
    }

    /// As a new write that its owners judge.
    async fn merge_object(&self, row: &ObjectRow) -> Result<Fate, ModelError> {
        if !self.bucket_is_there(row.bucket).await? || !self.content_is_there(row).await? {
            return Ok(Fate::Unused);
        }
        match self.0.objects.commit(row).await? {
            Verdict::Won => Ok(Fate::Merged),
            Verdict::Behind(_) if self.is_newest(row).await? => {
                // It is older than what was collected near it, as its own deletion may have been: the operator wants it all the same. It
                // keeps its time, since its content is known by it elsewhere.
                self.0.objects.merge(row).await?;
                Ok(Fate::Merged)
            }
            Verdict::Behind(_) | Verdict::Refused(_) => Ok(Fate::Unused),
        }
    }

    /// Whether a key has no newer row.
    async fn is_newest(&self, row: &ObjectRow) -> Result<bool, ModelError> {
        let present = rows_of_key(&self.0.objects, row.bucket, &row.key).await?;
        Ok(present.iter().all(|other| other.age() <= row.age()))
    }

    /// Whether what an object's content is listed under is at its owners.
    async fn content_is_there(&self, row: &ObjectRow) -> Result<bool, ModelError> {
        let in_row = row.live().is_none_or(|meta| matches!(meta.content, Content::Inline(_)));
        Ok(in_row || self.listing(row.version).await? == Listing::Listed)
    }

    async fn bucket_is_there(&self, bucket: BucketId) -> Result<bool, ModelError> {
        let row = self.0.buckets.get(bucket.into(), Vec::new()).await?;
        Ok(row.is_some_and(|row| matches!(row.state, Deletable::Present(_))))
    }

    async fn merge_other(&self, aside: &SetAside) -> Result<Fate, ModelError> {
        let bytes = &aside.row;
        match aside.table {
            table_ids::BUCKET => self.merge_row(&self.0.buckets, &BucketTable::decode(bytes)?).await,
            table_ids::ALIAS => self.merge_row(&self.0.aliases, &AliasTable::decode(bytes)?).await,
            table_ids::KEY => self.merge_row(&self.0.keys, &KeyTable::decode(bytes)?).await,
            table_ids::UPLOAD => self.merge_row(&self.0.uploads, &UploadTable::decode(bytes)?).await,
            table_ids::PART => self.merge_row(&self.0.parts, &PartTable::decode(bytes)?).await,
            other => Err(ModelError::Damaged(format!("rows of table {} were set aside, which is not known", other.0))),
        }
    }

    /// Merges a row into what its owners have, unless they know all it says.
    async fn merge_row<S: Schema>(&self, table: &Table<S>, row: &S::Row) -> Result<Fate, ModelError> {
        if let Some(present) = table.get(S::placement(row), S::sort_key(row)).await? {
            let mut merged = present.clone();
            merged.merge(row);
            if encode(&merged) == encode(&present) {
                return Ok(Fate::Known);
            }
        }
        table.merge(row).await?;
        Ok(Fate::Merged)
    }

    async fn settle_set_aside(&self, aside: &SetAside, fate: Fate, done: &mut MergedBack) -> Result<(), ModelError> {
        match fate {
            Fate::Unused => done.unused += 1,
            Fate::Superseded => {
                self.0.local.tables.forget_superseded(aside.clone()).await?;
                done.superseded += 1;
            }
            Fate::Known | Fate::Merged => {
                self.0.local.tables.forget_set_aside(vec![aside.position()]).await?;
                if fate == Fate::Known { done.superseded += 1 } else { done.merged += 1 }
            }
        }
        Ok(())
    }

    pub(crate) fn reference_table(&self) -> Table<BlockRefTable> {
        Table::new(self.0.local.tables.clone(), self.0.cluster.clone())
    }
}
