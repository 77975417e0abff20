//! Listing the open multipart uploads of a bucket, in the order of their keys and then of their ids, with prefix and delimiter.
//!
//! As for objects ([`crate::list`]), the walk is pure and the shell feeds it with rows.

use garage_table::Schema;
use garage_table::table::Query;
use garage_table::wire::{Order, Projection};
use garage_types::{BucketId, KeyId, ObjectKey, Timestamp, UploadId, sort_key};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::list::{common_prefix, encoded_prefix, within_prefix};
use crate::object::IndexShard;
use crate::upload::{UploadChecksum, UploadRow, UploadState, UploadTable};

/// Where a listing of uploads begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UploadsStart {
    #[default]
    Beginning,
    /// Behind all uploads of this key, and before those of any later one.
    AfterKey(String),
    /// Behind this upload.
    AfterUpload { key: String, id: UploadId },
    /// Behind everything that starts with this text.
    AfterPrefix(String),
}

#[derive(Clone, Debug, Default)]
pub struct UploadsQuery {
    pub prefix: String,
    /// `None` or empty: no grouping.
    pub delimiter: Option<String>,
    pub start: UploadsStart,
    /// Uploads and common prefixes together.
    pub limit: usize,
}

/// An open multipart upload as listings show it.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedUpload {
    pub key: ObjectKey,
    pub id: UploadId,
    pub started: Timestamp,
    pub owner: Option<KeyId>,
    pub checksum: Option<UploadChecksum>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum UploadItem {
    Upload(ListedUpload),
    CommonPrefix(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct UploadListing {
    pub items: Vec<UploadItem>,
    /// Whether there is more behind the last item.
    pub truncated: bool,
}

enum Next {
    Continue,
    /// What lies before this sort key is in the last common prefix.
    Seek(Vec<u8>),
    Done,
}

struct Walk<'q> {
    query: &'q UploadsQuery,
    listing: UploadListing,
    /// The common prefix given last.
    inside: Option<String>,
}

impl<'q> Walk<'q> {
    fn new(query: &'q UploadsQuery) -> Self {
        let inside = match &query.start {
            UploadsStart::AfterPrefix(prefix) => Some(prefix.clone()),
            _ => None,
        };
        Walk { query, listing: UploadListing::default(), inside }
    }

    /// The first sort key that can matter, and the first that cannot any more.
    fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let of_key = |key: &str| {
            let mut out = encoded_prefix(key);
            out.push(0);
            out
        };
        let start = match &self.query.start {
            UploadsStart::Beginning => Vec::new(),
            UploadsStart::AfterKey(key) => sort_key::after_prefix(&of_key(key)).unwrap_or_default(),
            UploadsStart::AfterUpload { key, id } => {
                let mut bound = of_key(key);
                bound.extend_from_slice(id.as_bytes());
                bound.push(0);
                bound
            }
            UploadsStart::AfterPrefix(prefix) => sort_key::after_prefix(&encoded_prefix(prefix)).unwrap_or_default(),
        };
        within_prefix(start, &self.query.prefix)
    }

    fn see(&mut self, row: UploadRow) -> Next {
        let UploadState::Multipart(multipart) = row.state else { return Next::Continue };
        let key = row.key.as_str();
        if let Some(prefix) = self.inside.as_deref().filter(|prefix| key.starts_with(prefix)) {
            return skip(prefix);
        }
        if self.listing.items.len() >= self.query.limit {
            self.listing.truncated = true;
            return Next::Done;
        }
        if let Some(prefix) = common_prefix(key, &self.query.prefix, self.query.delimiter.as_deref()) {
            let next = skip(&prefix);
            self.listing.items.push(UploadItem::CommonPrefix(prefix.clone()));
            self.inside = Some(prefix);
            return next;
        }
        let (owner, checksum) = (multipart.owner, multipart.checksum);
        let listed = ListedUpload { key: row.key, id: row.id, started: row.started, owner, checksum };
        self.listing.items.push(UploadItem::Upload(listed));
        Next::Continue
    }
}

fn skip(prefix: &str) -> Next {
    sort_key::after_prefix(&encoded_prefix(prefix)).map_or(Next::Continue, Next::Seek)
}

impl Garage {
    /// The open multipart uploads of a bucket.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn list_uploads(&self, bucket: BucketId, query: &UploadsQuery) -> Result<UploadListing, ModelError> {
        let mut walk = Walk::new(query);
        if query.limit == 0 {
            return Ok(walk.listing);
        }
        let placement = IndexShard { bucket, shard: 0 }.placement();
        let (mut from, to) = walk.bounds();
        while to.as_ref().is_none_or(|to| from < *to) {
            let page = Query { from, to: to.clone(), order: Order::Forward, limit: 1001, projection: Projection::Whole };
            let page = self.0.uploads.range(placement, page).await?;
            let mut seek = Vec::new();
            for row in page.rows {
                if UploadTable::sort_key(&row) < seek {
                    continue;
                }
                match walk.see(row) {
                    Next::Continue => {}
                    Next::Seek(bound) => seek = bound,
                    Next::Done => return Ok(walk.listing),
                }
            }
            let Some(mut last) = page.last else { break };
            last.push(0);
            from = seek.max(last);
        }
        Ok(walk.listing)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_table::Schema;
    use garage_types::{BucketId, ObjectKey, Timestamp, UploadId};

    use super::{Next, UploadItem, UploadListing, UploadsQuery, UploadsStart, Walk};
    use crate::upload::{MultipartUpload, UploadRow, UploadState, UploadTable};

    fn row(key: &str, id: u8, state: UploadState) -> UploadRow {
        UploadRow {
            bucket: BucketId::from_bytes([1; 32]),
            shard: 0,
            key: ObjectKey::parse(key).unwrap(),
            id: UploadId::from_bytes([id; 32]),
            started: Timestamp::from_millis(1),
            state,
        }
    }

    fn list(query: &UploadsQuery) -> UploadListing {
        let open = || UploadState::Multipart(Box::<MultipartUpload>::default());
        let rows = [
            row("a", 1, open()),
            row("a", 2, open()),
            row("a", 3, UploadState::Aborted),
            row("d/1", 1, open()),
            row("d/2", 1, open()),
            row("e", 1, UploadState::Done),
            row("f", 1, open()),
        ];
        let rows: BTreeMap<Vec<u8>, UploadRow> = rows.into_iter().map(|row| (UploadTable::sort_key(&row), row)).collect();
        let mut walk = Walk::new(query);
        let (mut from, to) = walk.bounds();
        for (key, row) in rows {
            if key < from || to.as_ref().is_some_and(|to| key >= *to) {
                continue;
            }
            match walk.see(row) {
                Next::Continue => {}
                Next::Seek(bound) => from = bound,
                Next::Done => break,
            }
        }
        walk.listing
    }

    fn texts(listing: &UploadListing) -> Vec<String> {
        let text = |item: &UploadItem| match item {
            UploadItem::Upload(upload) => format!("{} {}", upload.key, upload.id.as_bytes()[0]),
            UploadItem::CommonPrefix(prefix) => format!("{prefix}*"),
        };
        listing.items.iter().map(text).collect()
    }

    #[test]
    fn open_uploads_come_by_key_and_id() {
        let query = |start| UploadsQuery { start, limit: 10, ..UploadsQuery::default() };
        assert_eq!(texts(&list(&query(UploadsStart::Beginning))), ["a 1", "a 2", "d/1 1", "d/2 1", "f 1"]);
        let after = UploadsStart::AfterUpload { key: "a".to_owned(), id: UploadId::from_bytes([1; 32]) };
        assert_eq!(texts(&list(&query(after))), ["a 2", "d/1 1", "d/2 1", "f 1"]);
        assert_eq!(texts(&list(&query(UploadsStart::AfterKey("a".to_owned())))), ["d/1 1", "d/2 1", "f 1"]);
        let prefix = UploadsQuery { prefix: "d/".to_owned(), ..query(UploadsStart::Beginning) };
        assert_eq!(texts(&list(&prefix)), ["d/1 1", "d/2 1"]);
    }

    #[test]
    fn groups_and_limits_are_those_of_object_listings() {
        let query = |start, limit| UploadsQuery { delimiter: Some("/".to_owned()), start, limit, ..UploadsQuery::default() };
        let whole = list(&query(UploadsStart::Beginning, 10));
        assert_eq!(
            (texts(&whole), whole.truncated),
            (vec!["a 1".to_owned(), "a 2".to_owned(), "d/*".to_owned(), "f 1".to_owned()], false)
        );
        let cut = list(&query(UploadsStart::Beginning, 3));
        assert_eq!((texts(&cut).len(), cut.truncated), (3, true));
        assert_eq!(texts(&list(&query(UploadsStart::AfterPrefix("d/".to_owned()), 3))), ["f 1"]);
        assert_eq!(texts(&list(&query(UploadsStart::AfterKey("d/1".to_owned()), 3))), ["d/*", "f 1"]);
    }
}
