//! Listing the objects of a bucket, in the order of their keys, with prefix and delimiter.
//!
//! The walk is a pure state machine ([`Walk`]) fed with rows; the shell reads pages until it has enough. Must stay true: every
//! current object in the range is given exactly once, as itself or in its common prefix, and nothing else is.

use garage_table::table::Query;
use garage_table::wire::{Order, Projection};
use garage_types::{BucketId, ObjectKey, Timestamp, VersionId, sort_key};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::{IndexShard, ObjectMeta, ObjectRow, ObjectState};

/// Where a listing begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListStart {
    #[default]
    Beginning,
    /// Behind this text, which need not be a key.
    AfterText(String),
    /// Behind everything that starts with this text.
    AfterPrefix(String),
}

#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    pub prefix: String,
    /// Any length; `None` or empty: no grouping.
    pub delimiter: Option<String>,
    pub start: ListStart,
    /// Keys and common prefixes together.
    pub limit: usize,
}

/// An object as listings show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub key: ObjectKey,
    pub timestamp: Timestamp,
    pub version: VersionId,
    /// Without content and headers.
    pub meta: ObjectMeta,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ListItem {
    Object(Box<Listed>),
    CommonPrefix(String),
}

impl ListItem {
    /// Where a listing goes on behind this item.
    pub fn next_start(&self) -> ListStart {
        match self {
            ListItem::Object(listed) => ListStart::AfterText(listed.key.as_str().to_owned()),
            ListItem::CommonPrefix(prefix) => ListStart::AfterPrefix(prefix.clone()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    pub items: Vec<ListItem>,
    /// Whether there is more behind the last item.
    pub truncated: bool,
}

/// What the walk wants next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The following rows.
    Continue,
    /// Rows from this sort key on; what lies before is in the last common prefix.
    Seek(Vec<u8>),
    Done,
}

/// Goes through a bucket's rows, key by key.
struct Walk<'q> {
    query: &'q ListQuery,
    listing: Listing,
    /// The key whose newest row was seen last; its older rows say nothing new.
    decided: Option<ObjectKey>,
    /// The common prefix given last.
    inside: Option<String>,
}

impl<'q> Walk<'q> {
    fn new(query: &'q ListQuery) -> Self {
        let inside = match &query.start {
            ListStart::AfterPrefix(prefix) => Some(prefix.clone()),
            ListStart::Beginning | ListStart::AfterText(_) => None,
        };
        Walk { query, listing: Listing::default(), decided: None, inside }
    }

    /// The first sort key that can matter, and the first that cannot any more.
    fn bounds(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let prefix = encoded_prefix(&self.query.prefix);
        let start = match &self.query.start {
            ListStart::Beginning => Vec::new(),
            ListStart::AfterText(text) => {
                let mut bound = encoded_prefix(text);
                // Behind every version of exactly this key; longer keys with this beginning come later.
                bound.push(0);
                sort_key::after_prefix(&bound).unwrap_or_default()
            }
            ListStart::AfterPrefix(text) => sort_key::after_prefix(&encoded_prefix(text)).unwrap_or_default(),
        };
        let end = if prefix.is_empty() { None } else { sort_key::after_prefix(&prefix) };
        (start.max(prefix), end)
    }

    fn common_prefix(&self, key: &str) -> Option<String> {
        let delimiter = self.query.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty())?;
        let rest = key.strip_prefix(&self.query.prefix)?;
        let end = rest.find(delimiter)? + delimiter.len();
        Some(key[..self.query.prefix.len() + end].to_owned())
    }

    fn see(&mut self, row: ObjectRow) -> Next {
        if row.state == ObjectState::Tombstone && !row.is_null || self.decided.as_ref() == Some(&row.key) {
            return Next::Continue;
        }
        self.decided = Some(row.key.clone());
        let ObjectState::Live(meta) = row.state else { return Next::Continue };
        if self.inside.as_ref().is_some_and(|prefix| row.key.as_str().starts_with(prefix)) {
            return self.skip();
        }
        if self.listing.items.len() >= self.query.limit {
            self.listing.truncated = true;
            return Next::Done;
        }
        match self.common_prefix(row.key.as_str()) {
            Some(prefix) => {
                self.listing.items.push(ListItem::CommonPrefix(prefix.clone()));
                self.inside = Some(prefix);
                self.skip()
            }
            None => {
                let listed = Listed { key: row.key, timestamp: row.timestamp, version: row.version, meta: *meta };
                self.listing.items.push(ListItem::Object(Box::new(listed)));
                Next::Continue
            }
        }
    }

    fn skip(&self) -> Next {
        let inside = self.inside.as_deref().unwrap_or_default();
        sort_key::after_prefix(&encoded_prefix(inside)).map_or(Next::Continue, Next::Seek)
    }
}

pub(crate) fn encoded_prefix(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    sort_key::push_text_prefix(&mut out, text);
    out
}

impl Garage {
    /// The current objects of a bucket.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn list_objects(&self, bucket: BucketId, query: &ListQuery) -> Result<Listing, ModelError> {
        let mut walk = Walk::new(query);
        if query.limit == 0 {
            return Ok(walk.listing);
        }
        let placement = IndexShard { bucket, shard: 0 }.placement();
        let (mut from, to) = walk.bounds();
        loop {
            if to.as_ref().is_some_and(|to| from >= *to) {
                return Ok(walk.listing);
            }
            let missing = query.limit - walk.listing.items.len().min(query.limit);
            let limit = u32::try_from(missing + 1).unwrap_or(u32::MAX).clamp(16, 1001);
            let page = Query { from, to: to.clone(), order: Order::Forward, limit, projection: Projection::Summary };
            let page = self.0.objects.range(placement, page).await?;
            let mut seek = None;
            for row in page.rows {
                match walk.see(row) {
                    Next::Continue => seek = None,
                    Next::Seek(bound) => seek = Some(bound),
                    Next::Done => return Ok(walk.listing),
                }
            }
            let Some(mut last) = page.last else { return Ok(walk.listing) };
            last.push(0);
            from = seek.map_or_else(|| last.clone(), |bound| bound.max(last.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use garage_table::Schema;
    use garage_types::codec::Unknown;
    use garage_types::{BucketId, ObjectKey, Timestamp, VersionId};
    use proptest::prelude::{any, prop, proptest};

    use super::{ListItem, ListQuery, ListStart, Listing, Next, Walk};
    use crate::object::{Content, ObjectMeta, ObjectRow, ObjectState, ObjectTable};

    fn row(key: &str, live: bool) -> ObjectRow {
        let meta = ObjectMeta {
            size: 1,
            etag: String::new(),
            content: Content::NotShown,
            headers: BTreeMap::new(),
            checksum: None,
            owner: None,
            upload: None,
            unknown: Unknown::new(),
        };
        ObjectRow {
            bucket: BucketId::from_bytes([1; 32]),
            shard: 0,
            key: ObjectKey::parse(key).unwrap(),
            timestamp: Timestamp::from_millis(1),
            version: VersionId::from_bytes([1; 32]),
            is_null: true,
            state: if live { ObjectState::Live(Box::new(meta)) } else { ObjectState::Tombstone },
        }
    }

    /// The shell's loop over rows in memory, in pages of `page` rows.
    fn list(keys: &BTreeMap<String, bool>, query: &ListQuery, page: usize) -> Listing {
        let rows: BTreeMap<Vec<u8>, ObjectRow> =
            keys.iter().map(|(key, live)| row(key, *live)).map(|row| (ObjectTable::sort_key(&row), row)).collect();
        let mut walk = Walk::new(query);
        let (mut from, to) = walk.bounds();
        loop {
            let inside = rows.range(from.clone()..).filter(|(key, _)| to.as_ref().is_none_or(|to| *key < to));
            let page: Vec<_> = inside.take(page).collect();
            let Some((last, _)) = page.last() else { return walk.listing };
            let mut seek = None;
            for (_key, row) in &page {
                match walk.see((*row).clone()) {
                    Next::Continue => seek = None,
                    Next::Seek(bound) => seek = Some(bound),
                    Next::Done => return walk.listing,
                }
            }
            let mut next = (*last).clone();
            next.push(0);
            from = seek.unwrap_or_default().max(next);
        }
    }

    fn text(item: &ListItem) -> String {
        match item {
            ListItem::Object(listed) => listed.key.to_string(),
            ListItem::CommonPrefix(prefix) => format!("{prefix}*"),
        }
    }

    fn oracle(keys: &BTreeMap<String, bool>, prefix: &str, delimiter: &str) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        for key in keys.iter().filter(|(key, live)| **live && key.starts_with(prefix)).map(|(key, _)| key) {
            let rest = &key[prefix.len()..];
            let item = match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
                Some(at) => format!("{prefix}{}*", &rest[..at + delimiter.len()]),
                None => key.clone(),
            };
            if seen.insert(item.clone()) {
                out.push(item);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn pages_of_any_size_give_every_current_object_once(
            keys in prop::collection::btree_map("[ab/\u{0}]{1,4}", any::<bool>(), 0..30),
            prefix in "[ab/]{0,2}", delimiter in "[b/]{0,2}", limit in 1usize..6, page in 1usize..7,
        ) {
            let expected = oracle(&keys, &prefix, &delimiter);
            let mut found = Vec::new();
            let mut start = ListStart::Beginning;
            loop {
                let query = ListQuery { prefix: prefix.clone(), delimiter: Some(delimiter.clone()), start, limit };
                let listing = list(&keys, &query, page);
                assert!(listing.items.len() <= limit);
                found.extend(listing.items.iter().map(text));
                assert!(found.len() <= expected.len());
                if !listing.truncated { break; }
                start = listing.items.last().unwrap().next_start();
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_start_inside_a_common_prefix_gives_it_when_keys_follow() {
        let keys: BTreeMap<String, bool> = ["p/a", "p/b", "q"].map(|key| (key.to_owned(), true)).into();
        let query = |start| ListQuery { delimiter: Some("/".to_owned()), start, limit: 10, ..ListQuery::default() };
        let texts = |start| list(&keys, &query(start), 10).items.iter().map(text).collect::<Vec<_>>();
        assert_eq!(texts(ListStart::AfterText("p/a".to_owned())), ["p/*", "q"]);
        assert_eq!(texts(ListStart::AfterText("p/b".to_owned())), ["q"]);
        assert_eq!(texts(ListStart::AfterPrefix("p/".to_owned())), ["q"]);
    }
}
