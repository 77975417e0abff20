//! When the content of a superseded object may be released: once what superseded it is known to a write quorum.
//!
//! An owner that stores a newer row queues the release of the older one's content at once. But that newer row may have reached this
//! owner only, its writer gone: to the other owners, and so to reads that do not ask this one, the older is still the object, and it
//! was acknowledged. Therefore the row is spread first.

use garage_table::wire::Projection;
use garage_types::VersionId;
use garage_types::planted::{Bug, is_planted};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::{IndexShard, ObjectRow};

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
        let segments = self.segments(version).await?;
        // Without a list nothing is released.
        let Some(backlink) = segments.into_iter().next().map(|segment| segment.backlink) else { return Ok(()) };
        if self.0.cluster.decides_alone(&IndexShard { bucket: backlink.bucket, shard: 0 }.placement()) {
            return Ok(());
        }
        // A read writes back what differs, to a write quorum, before it answers; this node is among the first it asks.
        let rows = self.object_rows(backlink.bucket, &backlink.key, Projection::Whole).await?;
        if names(&rows, version) {
            return Err(ModelError::Conflict(format!("version {version} is still an object elsewhere; try again")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_types::codec::Unknown;
    use garage_types::{BucketId, ObjectKey, Timestamp, VersionId};

    use super::names;
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
