//! When the content of a superseded object may be released: once what superseded it is known to a write quorum.
//!
//! An owner that stores a newer row queues the release of the older one's content at once. But that newer row may have reached this
//! owner only, its writer gone: to the other owners, and so to reads that do not ask this one, the older is still the object, and it
//! was acknowledged. Therefore the row is spread first.
//!
//! The same holds for a row that comes where a newer one lies already. This owner ignores it and counts as one that has it, so its writer is
//! told that it is stored; but while the newer row is here only, the loss of this node makes the ignored one the object again, and then it
//! needs its content. Perhaps no other owner ever has either row, so this one queues the release, and it waits in the queue until the
//! newer row is spread.

use garage_table::wire::{Order, Projection, Range};
use garage_table::{Schema, TableError};
use garage_types::planted::{Bug, is_planted};
use garage_types::{VersionId, sort_key};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::{IndexShard, ObjectRow, ObjectTable, key_prefix};
use crate::version::Backlink;

/// Whether the rows of a key, newest first, still have this version as the content of an object.
fn names(rows: &[ObjectRow], version: VersionId) -> bool {
    let newer_null = |row: &ObjectRow| {
        row.is_null && rows.iter().any(|newer| newer.is_null && (newer.timestamp, newer.version) > (row.timestamp, row.version))
    };
    rows.iter().any(|row| row.version == version && row.live().is_some() && !newer_null(row))
}

impl Garage {
    /// Makes sure that no read quorum sees a version as an object any more.
    ///
    /// # Errors
    /// [`ModelError::Conflict`] while one does; [`ModelError::Table`] while too few owners answer.
    pub(crate) async fn spread_what_superseded(&self, version: VersionId) -> Result<(), ModelError> {
        if is_planted(Bug::ReleasedTooEarly) {
            return Ok(());
        }
        let certain = self.certain();
        let segments = certain.segments(version).await?;
        // Without a list nothing is released.
        let Some(backlink) = segments.into_iter().next().map(|segment| segment.backlink) else { return Ok(()) };
        if self.0.cluster.decides_alone(&IndexShard { bucket: backlink.bucket, shard: 0 }.placement()) {
            return Ok(());
        }
        // Before the others are asked: what superseded the version here is as new at least.
        let newest_here = self.newest_null_here(&backlink).await?;
        // A read writes back what differs, to a write quorum, before it answers; this node is among the first it asks.
        let rows = certain.object_rows(backlink.bucket, &backlink.key, Projection::Whole).await?;
        if names(&rows, version) {
            return Err(ModelError::Conflict(format!("version {version} is still an object elsewhere; try again")));
        }
        if newest_here.is_some_and(|here| !reaches(&rows, &here)) {
            // They answered without this node. The version's row may be on its way to them, and its writer be told that it is stored.
            return Err(ModelError::Conflict(format!("what superseded version {version} is not known elsewhere yet; try again")));
        }
        Ok(())
    }

    /// The newest null row of a key on this node.
    async fn newest_null_here(&self, backlink: &Backlink) -> Result<Option<ObjectRow>, ModelError> {
        let from = key_prefix(&backlink.key);
        let range = Range {
            layout: self.0.cluster.layout().version(),
            table: ObjectTable::ID,
            placement: IndexShard { bucket: backlink.bucket, shard: 0 }.placement(),
            to: sort_key::after_prefix(&from).map(Into::into),
            from: from.into(),
            order: Order::Forward,
            limit: ROWS_HERE,
            projection: Projection::Whole,
        };
        let page = self.0.local.tables.range(range).await?;
        let rows = page.rows.iter().map(|row| ObjectTable::decode(&row.row)).collect::<Result<Vec<_>, TableError>>()?;
        Ok(rows.into_iter().find(|row| row.is_null))
    }
}

/// Rows of one key that are looked at for a null one: one unless the bucket has versions.
const ROWS_HERE: u32 = 100;

/// Whether rows of a key have a null one as new as `newest`.
fn reaches(rows: &[ObjectRow], newest: &ObjectRow) -> bool {
    rows.iter().any(|row| row.is_null && row.age() >= newest.age())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_types::codec::Unknown;
    use garage_types::{BucketId, ObjectKey, Timestamp, VersionId};

    use super::{names, reaches};
    use crate::object::{Content, ObjectMeta, ObjectRow, ObjectState};

    fn row(time: u64, version: u8, state: ObjectState) -> ObjectRow {
        ObjectRow {
            bucket: BucketId::from_bytes([1; 32]),
            shard: 0,
            key: ObjectKey::parse("k").unwrap(),
            timestamp: Timestamp::from_millis(time),
            version: VersionId::from_bytes([version; 32]),
            is_null: true,
            state,
        }
    }

    fn live() -> ObjectState {
        ObjectState::Live(Box::new(ObjectMeta {
            size: 5,
            etag: "e".to_owned(),
            content: Content::Parts { count: 1 },
            headers: BTreeMap::new(),
            checksum: None,
            owner: None,
            upload: None,
            unknown: Unknown::new(),
        }))
    }

    #[test]
    fn others_know_what_superseded_a_row_once_they_have_a_null_row_as_new() {
        let here = row(5, 1, ObjectState::Tombstone);
        assert!(!reaches(&[], &here) && !reaches(&[row(4, 9, live())], &here));
        assert!(reaches(&[row(5, 1, ObjectState::Tombstone)], &here) && reaches(&[row(6, 0, live())], &here));
        assert!(!reaches(&[ObjectRow { is_null: false, ..row(6, 0, live()) }], &here), "it supersedes nothing");
    }

    #[test]
    fn a_version_is_named_until_something_newer_is_seen_beside_it() {
        let version = VersionId::from_bytes([7; 32]);
        assert!(!names(&[], version));
        assert!(names(&[row(1, 7, live())], version));
        assert!(names(&[row(2, 7, live()), row(1, 8, live())], version));
        assert!(!names(&[row(2, 8, live()), row(1, 7, live())], version));
        assert!(!names(&[row(2, 8, ObjectState::Tombstone), row(1, 7, live())], version));
        assert!(!names(&[row(1, 7, ObjectState::Tombstone)], version));
    }
}
