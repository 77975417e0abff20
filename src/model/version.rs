//! The version table: which blocks make up a content. Rows of at most [`SEGMENT_PIECES_MAX`] pieces, so that no row grows with
//! the object.
//!
//! A content is deleted by one mark at the front of its placement; from then on its rows count for nothing. Each owner queues, in
//! the transaction that stores the mark, the deletion of every row it knows, and releases the pieces of a row in the transaction
//! that deletes it; pieces it learns of later it releases at once. So no transaction grows with the object beyond one entry a row
//! or one a piece of one row. Version ids are never used twice, so a mark never hits anything else.

use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit, Belongings};
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Entry, Mode, TableId};
use garage_table::{Replication, Schema};
use garage_types::codec::Format;
use garage_types::crdt::Crdt;
use garage_types::{BlockHash, BucketId, ObjectKey, Placement, VersionId};
use serde::{Deserialize, Serialize};

use crate::block_ref::{BlockRefRow, BlockRefTable};
use crate::table_ids;

/// Pieces in one row.
pub const SEGMENT_PIECES_MAX: usize = 1000;

/// Something a content is made of, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    #[serde(rename = "b")]
    Block {
        #[serde(rename = "h")]
        hash: BlockHash,
        /// Bytes of plain content.
        #[serde(rename = "l")]
        length: u64,
    },
    /// A finished part of a multipart upload, with a content of its own.
    #[serde(rename = "p")]
    Part {
        #[serde(rename = "n")]
        number: u32,
        #[serde(rename = "v")]
        version: VersionId,
        #[serde(rename = "l")]
        length: u64,
        /// Base64 of the part's checksum, of the algorithm of the upload.
        #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
        checksum: Option<String>,
    },
}

impl Piece {
    pub fn length(&self) -> u64 {
        match self {
            Piece::Block { length, .. } | Piece::Part { length, .. } => *length,
        }
    }
}

impl Piece {
    /// The block and its length, unless it is a part.
    pub fn block(&self) -> Option<(BlockHash, u64)> {
        match self {
            Piece::Block { hash, length } => Some((*hash, *length)),
            Piece::Part { .. } => None,
        }
    }
}

/// What a content belongs to, for operators who look at a block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backlink {
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "k")]
    pub key: ObjectKey,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    #[serde(rename = "v")]
    pub version: VersionId,
    #[serde(rename = "s")]
    pub content: VersionContent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionContent {
    /// The whole version is deleted.
    #[serde(rename = "d")]
    Deleted,
    #[serde(rename = "g")]
    Segment(Segment),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// From zero on.
    #[serde(rename = "i")]
    pub index: u32,
    #[serde(rename = "l")]
    pub backlink: Backlink,
    /// Only ever grows; emptied when the version is deleted or withdrawn.
    #[serde(rename = "p")]
    pub pieces: Vec<Piece>,
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// The list was taken back before any object row named it: its pieces belong to somebody else and are not released.
    #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
}

impl Segment {
    pub fn listing(index: u32, backlink: Backlink, pieces: Vec<Piece>) -> Self {
        Segment { index, backlink, pieces, deleted: false, withdrawn: false }
    }

    fn lists_parts(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Part { .. }))
    }
}

/// What ends a version of which these are the rows, and which nothing has. Blocks that it lists are its own and are released. Parts are
/// not: an object that was completed after this list was made may have them; or else they are versions that nothing has themselves.
pub(crate) fn endings_of_unused(version: VersionId, segments: Vec<Segment>) -> Vec<VersionRow> {
    if !segments.iter().any(Segment::lists_parts) {
        return vec![VersionRow::deleted(version)];
    }
    segments.into_iter().map(|segment| VersionRow::withdrawn(version, segment.index, segment.backlink)).collect()
}

impl VersionRow {
    pub fn deleted(version: VersionId) -> Self {
        VersionRow { version, content: VersionContent::Deleted }
    }

    /// Takes a list of parts back without releasing them.
    pub(crate) fn withdrawn(version: VersionId, index: u32, backlink: Backlink) -> Self {
        let segment = Segment { withdrawn: true, ..Segment::listing(index, backlink, Vec::new()) };
        VersionRow { version, content: VersionContent::Segment(segment) }
    }

    /// The deletion of this row of a deleted version, if there is anything to release.
    fn segment_deleted(self) -> Option<Self> {
        let VersionContent::Segment(segment) = self.content else { return None };
        if segment.deleted || segment.withdrawn {
            return None;
        }
        let segment = Segment { deleted: true, ..Segment::listing(segment.index, segment.backlink, Vec::new()) };
        Some(VersionRow { version: self.version, content: VersionContent::Segment(segment) })
    }
}

impl Format for VersionRow {
    const TAG: &'static str = "ver1";
}

impl Crdt for VersionRow {
    fn merge(&mut self, other: &Self) {
        let (VersionContent::Segment(mine), VersionContent::Segment(theirs)) = (&mut self.content, &other.content) else {
            return;
        };
        mine.deleted |= theirs.deleted;
        mine.withdrawn |= theirs.withdrawn;
        if mine.deleted || mine.withdrawn {
            mine.pieces.clear();
        } else if theirs.pieces.len() > mine.pieces.len() {
            mine.pieces.clone_from(&theirs.pieces);
        }
    }
}

const DELETED_KEY: u8 = 0;
const SEGMENT_KEY: u8 = 1;

/// The deletions that follow when `pieces` of a deleted version are given up.
pub fn releases(version: VersionId, pieces: &[Piece]) -> Vec<Entry> {
    let release = |piece: &Piece| match piece {
        Piece::Block { hash, .. } => BlockRefTable::entry(&BlockRefRow::released(*hash, version), Mode::Replicate),
        Piece::Part { version, .. } => VersionTable::entry(&VersionRow::deleted(*version), Mode::Replicate),
    };
    pieces.iter().map(release).collect()
}

/// The version table.
#[derive(Debug, Default)]
pub struct VersionTable;

impl VersionTable {
    /// All rows of a version.
    pub(crate) fn all_of(version: VersionId) -> Belongings {
        Belongings { table: Self::ID, placement: version.into(), prefix: Vec::new() }
    }

    fn is_deleted(tx: &RowTransaction<'_, '_>, version: VersionId) -> Result<bool, TableError> {
        Ok(tx.row::<VersionTable>(&version.into(), &[DELETED_KEY])?.is_some())
    }
}

impl Schema for VersionTable {
    const ID: TableId = table_ids::VERSION;
    const NAME: &'static str = "version";
    const REPLICATION: Replication = Replication::Sharded;
    type Row = VersionRow;

    fn is_superseded(tx: &RowTransaction<'_, '_>, row: &VersionRow) -> Result<bool, TableError> {
        Self::is_deleted(tx, row.version)
    }

    fn belongings(row: &VersionRow) -> Vec<Belongings> {
        let VersionContent::Segment(segment) = &row.content else { return Vec::new() };
        let of_piece = |piece: &Piece| match piece {
            Piece::Block { hash, .. } => {
                let prefix = row.version.as_bytes().to_vec();
                Belongings { table: BlockRefTable::ID, placement: (*hash).into(), prefix }
            }
            Piece::Part { version, .. } => Self::all_of(*version),
        };
        segment.pieces.iter().map(of_piece).collect()
    }

    fn placement(row: &VersionRow) -> Placement {
        row.version.into()
    }

    fn sort_key(row: &VersionRow) -> Vec<u8> {
        match &row.content {
            VersionContent::Deleted => vec![DELETED_KEY],
            VersionContent::Segment(segment) => {
                let mut key = vec![SEGMENT_KEY];
                key.extend_from_slice(&segment.index.to_be_bytes());
                key
            }
        }
    }

    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut VersionRow, _how: Admit<'_>) -> Result<Admission, TableError> {
        let VersionContent::Segment(segment) = &mut row.content else { return Ok(Admission::Merge) };
        if !segment.deleted && Self::is_deleted(tx, row.version)? {
            // The deletion overtook this piece of the content: release what it names, keep nothing of it.
            segment.deleted = true;
            for entry in releases(row.version, &std::mem::take(&mut segment.pieces)) {
                tx.enqueue(&entry)?;
            }
        }
        Ok(Admission::Merge)
    }

    fn changed(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        old: Option<&VersionRow>,
        new: Option<&VersionRow>,
    ) -> Result<(), TableError> {
        if let Some(VersionRow { content: VersionContent::Segment(segment), .. }) = old
            && let Some(VersionRow { version, content: VersionContent::Segment(now) }) = new
            && now.deleted
            && !now.withdrawn
            && !segment.deleted
        {
            for entry in releases(*version, &segment.pieces) {
                tx.enqueue(&entry)?;
            }
        }
        let (None, Some(VersionRow { version, content: VersionContent::Deleted })) = (old, new) else { return Ok(()) };
        for row in tx.rows_with_prefix::<VersionTable>(&(*version).into(), &[SEGMENT_KEY])? {
            if let Some(deleted) = row.segment_deleted() {
                tx.enqueue(&VersionTable::entry(&deleted, Mode::Replicate))?;
            }
        }
        Ok(())
    }

    fn is_collectable(row: &VersionRow) -> bool {
        match &row.content {
            VersionContent::Deleted => true,
            VersionContent::Segment(segment) => segment.deleted || segment.withdrawn,
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::crdt::Crdt;
    use garage_types::{BlockHash, BucketId, ObjectKey, VersionId};
    use proptest::prelude::{any, prop, proptest};

    use super::{Backlink, Piece, Segment, VersionContent, VersionRow};

    #[test]
    fn rows_with_something_to_release_are_deleted_one_by_one() {
        let VersionContent::Segment(deleted) = segment(3, false, false).segment_deleted().unwrap().content else { panic!() };
        assert!(deleted.deleted && !deleted.withdrawn && deleted.pieces.is_empty());
        assert_eq!(segment(0, true, false).segment_deleted(), None);
        assert_eq!(segment(0, false, true).segment_deleted(), None);
        assert_eq!(VersionRow::deleted(VersionId::from_bytes([2; 32])).segment_deleted(), None);
    }

    fn segment(pieces: usize, deleted: bool, withdrawn: bool) -> VersionRow {
        let block = |index: usize| Piece::Block { hash: BlockHash::of(&[index as u8]), length: 1 };
        let backlink = Backlink { bucket: BucketId::from_bytes([1; 32]), key: ObjectKey::parse("k").unwrap() };
        let pieces = if deleted || withdrawn { Vec::new() } else { (0..pieces).map(block).collect() };
        let segment = Segment { deleted, withdrawn, ..Segment::listing(0, backlink, pieces) };
        VersionRow { version: VersionId::from_bytes([2; 32]), content: VersionContent::Segment(segment) }
    }

    proptest! {
        #[test]
        fn segments_merge_alike_in_any_order(v in prop::array::uniform3((0usize..4, any::<bool>(), any::<bool>()))) {
            let [a, b, c] = v.map(|(pieces, deleted, withdrawn)| segment(pieces, deleted, withdrawn));
            let join = |x: &VersionRow, y: &VersionRow| { let mut out = x.clone(); out.merge(y); out };
            assert_eq!(join(&a, &b), join(&b, &a));
            assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            assert_eq!(join(&a, &a), a);
        }
    }
}
