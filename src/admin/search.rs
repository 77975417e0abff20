//! Which node, key or bucket a few typed characters mean. Pure; exactly one must fit.

use garage_types::{BucketId, KeyId, NodeId};

/// Why a search found nothing to work on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    #[error("{found} nodes match {pattern:?}: {}", match found {
        0 => "give the beginning of an id that `garage status` lists",
        _ => "give more digits of one id, as `garage status` lists them",
    })]
    Node { pattern: String, found: usize },
    #[error("{found} matching keys for {pattern:?}: give an id or a name that only one key has")]
    Key { pattern: String, found: usize },
    #[error("{found} buckets match {pattern:?}: {}", match found {
        0 => "give a name or the beginning of an id, as `garage bucket list` lists them",
        _ => "give a name or more digits of one id",
    })]
    Bucket { pattern: String, found: usize },
}

/// Fewest digits of a bucket's id that count as one, so that a mistyped name does not hit a bucket by accident.
const BUCKET_PREFIX_MIN: usize = 2;

fn is_hex(pattern: &str) -> bool {
    !pattern.is_empty() && pattern.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The node whose id begins with `pattern`, among `nodes`, which may name one several times.
///
/// # Errors
/// [`SearchError::Node`] unless exactly one does.
pub fn node(pattern: &str, nodes: impl IntoIterator<Item = NodeId>) -> Result<NodeId, SearchError> {
    let pattern_lower = pattern.to_ascii_lowercase();
    let mut matches: Vec<NodeId> =
        nodes.into_iter().filter(|node| is_hex(pattern) && node.to_string().starts_with(&pattern_lower)).collect();
    matches.sort_unstable();
    matches.dedup();
    match matches.as_slice() {
        [node] => Ok(*node),
        _ => Err(SearchError::Node { pattern: pattern.to_owned(), found: matches.len() }),
    }
}

/// A key as searches see it.
#[derive(Clone, Copy, Debug)]
pub struct KeyCandidate<'a> {
    pub id: &'a KeyId,
    pub name: &'a str,
}

/// The key that has the id `pattern`, or whose id begins with it, or whose name it is (upper and lower case alike).
///
/// # Errors
/// [`SearchError::Key`] unless exactly one fits.
pub fn key<'a>(pattern: &str, keys: &[KeyCandidate<'a>]) -> Result<&'a KeyId, SearchError> {
    if let Some(exact) = keys.iter().find(|key| key.id.as_str() == pattern) {
        return Ok(exact.id);
    }
    let fits = |key: &&KeyCandidate<'a>| {
        !pattern.is_empty() && (key.id.as_str().starts_with(pattern) || key.name.to_lowercase() == pattern.to_lowercase())
    };
    let matches: Vec<&KeyCandidate<'a>> = keys.iter().filter(fits).collect();
    match matches.as_slice() {
        [key] => Ok(key.id),
        _ => Err(SearchError::Key { pattern: pattern.to_owned(), found: matches.len() }),
    }
}

/// The bucket whose id begins with `pattern`. Names are looked up before, as they win.
///
/// # Errors
/// [`SearchError::Bucket`] unless exactly one does.
pub fn bucket(pattern: &str, buckets: impl IntoIterator<Item = BucketId>) -> Result<BucketId, SearchError> {
    let pattern_lower = pattern.to_ascii_lowercase();
    let is_prefix = pattern.len() >= BUCKET_PREFIX_MIN && is_hex(pattern);
    let matches: Vec<BucketId> =
        buckets.into_iter().filter(|id| is_prefix && id.to_string().starts_with(&pattern_lower)).collect();
    match matches.as_slice() {
        [id] => Ok(*id),
        _ => Err(SearchError::Bucket { pattern: pattern.to_owned(), found: matches.len() }),
    }
}

#[cfg(test)]
mod tests {
    use garage_types::{BucketId, KeyId, NodeId};

    use super::{KeyCandidate, SearchError};

    #[test]
    fn a_prefix_must_match_exactly_one_node() {
        let nodes = [0xab, 0xac, 0x01].map(|byte| NodeId::from_bytes([byte; 32]));
        assert_eq!(super::node("ab", nodes), Ok(nodes[0]));
        assert_eq!(super::node("AB", nodes), Ok(nodes[0]), "people paste capitals");
        assert_eq!(super::node("01", nodes.into_iter().chain(nodes)), Ok(nodes[2]), "listed twice is one node");
        assert_eq!(super::node("a", nodes), Err(SearchError::Node { pattern: "a".into(), found: 2 }));
        assert_eq!(super::node("", nodes), Err(SearchError::Node { pattern: String::new(), found: 0 }));
        let none = super::node("ff", nodes).unwrap_err().to_string();
        assert!(none.starts_with("0 nodes match \"ff\"") && !none.contains("more digits"), "{none}");
        assert!(super::node("a", nodes).unwrap_err().to_string().contains("more digits"));
    }

    #[test]
    fn a_key_is_found_by_id_prefix_or_name() {
        let ids = ["GKaa11", "GKaa22", "GKbb33", "GKaa"].map(|id| KeyId::parse(id).unwrap());
        let names = ["web", "backup", "Web Two", "short"];
        let keys: Vec<KeyCandidate<'_>> = ids.iter().zip(names).map(|(id, name)| KeyCandidate { id, name }).collect();
        assert_eq!(super::key("GKaa1", &keys), Ok(&ids[0]));
        assert_eq!(super::key("GKaa", &keys), Ok(&ids[3]), "a whole id wins over prefixes");
        assert_eq!(super::key("WEB", &keys), Ok(&ids[0]));
        assert_eq!(super::key("GK", &keys), Err(SearchError::Key { pattern: "GK".into(), found: 4 }));
        assert_eq!(super::key("we", &keys), Err(SearchError::Key { pattern: "we".into(), found: 0 }));
        assert_eq!(super::key("", &keys), Err(SearchError::Key { pattern: String::new(), found: 0 }));
    }

    #[test]
    fn a_bucket_needs_two_digits_that_only_it_has() {
        let ids = [0xab, 0xac].map(|byte| BucketId::from_bytes([byte; 32]));
        assert_eq!(super::bucket("ab", ids), Ok(ids[0]));
        assert_eq!(super::bucket("a", [ids[0]]), Err(SearchError::Bucket { pattern: "a".into(), found: 0 }));
        assert!(!super::bucket("photos", ids).unwrap_err().to_string().contains("more digits"));
        assert_eq!(super::bucket("photos", ids), Err(SearchError::Bucket { pattern: "photos".into(), found: 0 }));
    }
}
