//! What a table means: given by `model`, used here through bytes.

use std::sync::Arc;

use garage_db::Snapshot;
use garage_types::codec::{self, Format};
use garage_types::crdt::Crdt;
use garage_types::{Placement, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use crate::error::TableError;
use crate::segments::KeyRange;
use crate::transaction::RowTransaction;
use crate::wire::{Entry, Mode, Projection, TableId, Verdict};

/// Who holds the rows of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replication {
    /// The owners of the row's partition.
    Sharded,
    /// Every node of the layout.
    FullCopy,
}

/// How long tombstones are of use to people, besides keeping what is deleted from coming back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Collection {
    Soon,
    /// They answer requests that are repeated.
    Late,
}

/// What the owner does with an admitted row besides merging it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Merge it with the present row.
    Merge,
    /// Answer this and store nothing.
    Answer(Verdict),
}

/// What took the place of a damaged row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplacedBy {
    /// The same row, as another owner has it.
    Itself,
    /// What others have; nobody knows any more what it was.
    Others,
}

/// Rows of a table under one placement, whose sort keys begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belongings {
    pub table: TableId,
    pub placement: Placement,
    pub prefix: Vec<u8>,
}

impl Belongings {
    /// How the local keys of these rows begin.
    pub(crate) fn key(&self) -> Vec<u8> {
        local_key(&self.placement, &self.prefix)
    }
}

/// One table's rows: their keys, how they merge, and what follows from a change.
pub trait Schema: Send + Sync + 'static {
    const ID: TableId;
    const NAME: &'static str;
    const REPLICATION: Replication;
    /// Whether a damaged row of which there is no copy may be removed at an operator's word. False where something else would follow from
    /// its absence: blocks of whole objects would be deleted, names or keys given away.
    const MAY_BE_GIVEN_UP: bool = false;
    type Row: Format + Crdt + Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    fn placement(row: &Self::Row) -> Placement;

    /// Order-preserving; no sort key of a placement is a prefix of another's.
    fn sort_key(row: &Self::Row) -> Vec<u8>;

    /// A sort key, or the beginning of one, as logs and errors show it.
    fn shown(sort_key: &[u8]) -> String {
        sort_key.escape_ascii().to_string()
    }

    /// Whether storing the row needs room that a nearly full disk keeps for deletions. Asked of new writes only.
    fn grows(_row: &Self::Row) -> bool {
        false
    }

    /// Decides, in the owner's transaction, whether the row may be stored; may change other rows that it supersedes.
    ///
    /// # Errors
    /// What the transaction reports; nothing is stored then.
    fn admit(&self, _tx: &mut RowTransaction<'_, '_>, _row: &mut Self::Row, _how: Admit<'_>) -> Result<Admission, TableError> {
        Ok(Admission::Merge)
    }

    /// Carries out, in the same transaction, what follows from `old` becoming `new`; `new` is `None` when a superseded row is removed.
    ///
    /// # Errors
    /// What the transaction reports; nothing is stored then.
    fn changed(
        &self,
        _tx: &mut RowTransaction<'_, '_>,
        _old: Option<&Self::Row>,
        _new: Option<&Self::Row>,
    ) -> Result<(), TableError> {
        Ok(())
    }

    /// Carries out, in the same transaction, what follows from this node keeping `row` no longer, although it stays what it is: counts
    /// of this node go down, nothing is released.
    ///
    /// # Errors
    /// What the transaction reports; the row stays then.
    fn dropped(&self, _tx: &mut RowTransaction<'_, '_>, _row: &Self::Row) -> Result<(), TableError> {
        Ok(())
    }

    /// Works out anew what is kept about the rows of a placement, or notes that it has to be: a damaged one of them was replaced.
    ///
    /// # Errors
    /// What the transaction reports; nothing is stored then.
    fn derive_anew(&self, _tx: &mut RowTransaction<'_, '_>, _placement: &Placement, _by: ReplacedBy) -> Result<(), TableError> {
        Ok(())
    }

    /// What an owner of these rows has to know besides them. Who compares its rows with this node's is told, before they count as compared.
    ///
    /// # Errors
    /// [`TableError`]: what is kept cannot be read.
    fn notes(&self, _tx: &Snapshot<'_>, _range: &KeyRange) -> Result<Vec<ByteBuf>, TableError> {
        Ok(Vec::new())
    }

    /// Keeps what another owner's [`Schema::notes`] say. Whoever sent them may be of a later version: what is not understood is an error.
    ///
    /// # Errors
    /// What the transaction reports; nothing is stored then.
    fn keep_notes(&self, _tx: &mut RowTransaction<'_, '_>, _notes: &[ByteBuf]) -> Result<(), TableError> {
        Ok(())
    }

    /// When tombstones of this table are collected.
    const COLLECTION: Collection = Collection::Soon;

    /// Whether the row only says that something is over, so that it may go once every owner knows.
    fn is_collectable(_row: &Self::Row) -> bool {
        false
    }

    /// When a tombstone was written, where what it ends may be written again under a later time; else [`Timestamp::ZERO`].
    fn written_at(_row: &Self::Row) -> Timestamp {
        Timestamp::ZERO
    }

    /// Whether a row of this table that was set aside is superseded by what this node's whole tables have under other keys. Only when
    /// that is certain: nobody misses it then.
    ///
    /// # Errors
    /// What the transaction reports.
    fn is_superseded(_tx: &RowTransaction<'_, '_>, _row: &Self::Row) -> Result<bool, TableError> {
        Ok(false)
    }

    /// Which rows belong to this one alone, so that they are of no use once it is superseded.
    fn belongings(_row: &Self::Row) -> Vec<Belongings> {
        Vec::new()
    }

    /// The row without what listings do not show.
    fn summary(row: Self::Row) -> Self::Row {
        row
    }

    /// A row as its owners are sent it.
    fn entry(row: &Self::Row, mode: Mode) -> Entry {
        Entry {
            table: Self::ID,
            placement: Self::placement(row),
            sort_key: Self::sort_key(row).into(),
            row: codec::encode(row).into(),
            mode,
            condition: None,
            epoch: 0,
            is_compared: false,
        }
    }

    /// # Errors
    /// [`TableError::Row`] when the bytes are not such a row.
    fn decode(bytes: &[u8]) -> Result<Self::Row, TableError> {
        codec::decode(bytes).map_err(|source| TableError::Row { table: Self::NAME, source })
    }
}

/// The circumstances under which a row arrives.
#[derive(Clone, Copy, Debug)]
pub struct Admit<'a> {
    pub mode: Mode,
    pub condition: Option<&'a [u8]>,
    pub origin: Origin,
    /// Time of the request at this owner.
    pub now: Timestamp,
}

/// What a row arrives by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A request whose coordinator counts who has it.
    Request,
    /// The comparison of owners' rows.
    Comparison,
}

/// A schema without its type, as the store holds it.
pub(crate) trait Rules: Send + Sync {
    fn name(&self) -> &'static str;
    fn may_be_given_up(&self) -> bool;
    fn apply(&self, tx: &mut RowTransaction<'_, '_>, entry: &Entry) -> Result<Verdict, TableError>;
    fn project(&self, row: &[u8], projection: Projection) -> Result<Vec<u8>, TableError>;
    fn dropped(&self, tx: &mut RowTransaction<'_, '_>, row: &[u8]) -> Result<(), TableError>;
    fn derive_anew(&self, tx: &mut RowTransaction<'_, '_>, placement: &Placement, by: ReplacedBy) -> Result<(), TableError>;
    fn notes(&self, tx: &Snapshot<'_>, range: &KeyRange) -> Result<Vec<ByteBuf>, TableError>;
    fn keep_notes(&self, tx: &mut RowTransaction<'_, '_>, notes: &[ByteBuf]) -> Result<(), TableError>;
    fn is_collectable(&self, row: &[u8]) -> Result<bool, TableError>;
    fn written_at(&self, row: &[u8]) -> Result<Timestamp, TableError>;
    fn is_superseded(&self, tx: &RowTransaction<'_, '_>, row: &[u8]) -> Result<bool, TableError>;
    fn belongings(&self, row: &[u8]) -> Result<Vec<Belongings>, TableError>;
    fn replication(&self) -> Replication;
    fn collection(&self) -> Collection;
    /// The merge of two copies of a row, and whether either side lacks something the merge has.
    fn merge(&self, a: &[u8], b: &[u8]) -> Result<Vec<u8>, TableError>;
}

pub(crate) struct Typed<S>(pub Arc<S>);

impl<S: Schema> Rules for Typed<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn may_be_given_up(&self) -> bool {
        S::MAY_BE_GIVEN_UP
    }

    fn apply(&self, tx: &mut RowTransaction<'_, '_>, entry: &Entry) -> Result<Verdict, TableError> {
        let mut row = S::decode(&entry.row)?;
        if entry.mode == Mode::Commit && S::grows(&row) && tx.room().is_metadata_scarce() {
            return Err(TableError::NoRoom);
        }
        let condition = entry.condition.as_ref().map(|bytes| bytes.as_slice());
        let origin = if entry.is_compared { Origin::Comparison } else { Origin::Request };
        let how = Admit { mode: entry.mode, condition, origin, now: tx.now() };
        if let Admission::Answer(verdict) = self.0.admit(tx, &mut row, how)? {
            return Ok(verdict);
        }
        let key = local_key(&entry.placement, &entry.sort_key);
        let present = tx.get(S::ID, &key)?;
        let old = present.as_deref().map(S::decode).transpose()?;
        if let Some(old) = &old {
            let mut merged = old.clone();
            merged.merge(&row);
            row = merged;
        }
        let bytes = codec::encode(&row);
        if present.as_deref() != Some(bytes.as_slice()) {
            tx.put(S::ID, &key, present.as_deref(), &bytes)?;
            if S::is_collectable(&row) {
                tx.bury(S::ID, &key)?;
            }
            self.0.changed(tx, old.as_ref(), Some(&row))?;
        }
        Ok(Verdict::Won)
    }

    fn dropped(&self, tx: &mut RowTransaction<'_, '_>, row: &[u8]) -> Result<(), TableError> {
        self.0.dropped(tx, &S::decode(row)?)
    }

    fn derive_anew(&self, tx: &mut RowTransaction<'_, '_>, placement: &Placement, by: ReplacedBy) -> Result<(), TableError> {
        self.0.derive_anew(tx, placement, by)
    }

    fn notes(&self, tx: &Snapshot<'_>, range: &KeyRange) -> Result<Vec<ByteBuf>, TableError> {
        self.0.notes(tx, range)
    }

    fn keep_notes(&self, tx: &mut RowTransaction<'_, '_>, notes: &[ByteBuf]) -> Result<(), TableError> {
        self.0.keep_notes(tx, notes)
    }

    fn is_collectable(&self, row: &[u8]) -> Result<bool, TableError> {
        Ok(S::is_collectable(&S::decode(row)?))
    }

    fn written_at(&self, row: &[u8]) -> Result<Timestamp, TableError> {
        Ok(S::written_at(&S::decode(row)?))
    }

    fn is_superseded(&self, tx: &RowTransaction<'_, '_>, row: &[u8]) -> Result<bool, TableError> {
        S::is_superseded(tx, &S::decode(row)?)
    }

    fn belongings(&self, row: &[u8]) -> Result<Vec<Belongings>, TableError> {
        Ok(S::belongings(&S::decode(row)?))
    }

    fn replication(&self) -> Replication {
        S::REPLICATION
    }

    fn collection(&self) -> Collection {
        S::COLLECTION
    }

    fn project(&self, row: &[u8], projection: Projection) -> Result<Vec<u8>, TableError> {
        match projection {
            Projection::Whole => Ok(row.to_vec()),
            Projection::Summary => Ok(codec::encode(&S::summary(S::decode(row)?))),
        }
    }

    fn merge(&self, a: &[u8], b: &[u8]) -> Result<Vec<u8>, TableError> {
        let mut merged = S::decode(a)?;
        merged.merge(&S::decode(b)?);
        Ok(codec::encode(&merged))
    }
}

/// The key of a row in a data tree: placement, then sort key.
pub(crate) fn local_key(placement: &Placement, sort_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(32 + sort_key.len());
    key.extend_from_slice(placement.as_bytes());
    key.extend_from_slice(sort_key);
    key
}
