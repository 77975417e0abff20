//! Conditional reads: `If-Match`, `If-None-Match`, `If-Modified-Since`, `If-Unmodified-Since`, with AWS's precedence.
//!
//! `If-Match` that holds makes `If-Unmodified-Since` irrelevant; `If-None-Match` that does not hold answers 304 whatever
//! `If-Modified-Since` says. Dates are compared in whole seconds and ignored when malformed or in the future.

use garage_types::Timestamp;

/// The conditions of a read, dates already parsed (`None` when absent or malformed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadConditions {
    pub if_match: Option<Vec<String>>,
    pub if_none_match: Option<Vec<String>>,
    pub if_modified_since: Option<Timestamp>,
    pub if_unmodified_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Send,
    NotModified,
    PreconditionFailed,
}

/// The ETags of a header, without quotes and weakness marks; `*` stays.
pub fn parse_etags(header: &str) -> Vec<String> {
    let bare = |text: &str| {
        let text = text.trim();
        let text = text.strip_prefix("W/").unwrap_or(text);
        text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).to_owned()
    };
    header.split(',').map(bare).filter(|etag| !etag.is_empty()).collect()
}

fn holds(etags: &[String], etag: &str) -> bool {
    etags.iter().any(|wanted| wanted == "*" || wanted == etag)
}

/// Judges a read of a content with this ETag, last changed at `modified`.
pub fn judge(conditions: &ReadConditions, etag: &str, modified: Timestamp) -> Judgement {
    let modified = modified.as_secs();
    match (&conditions.if_match, conditions.if_unmodified_since) {
        (Some(etags), _) if !holds(etags, etag) => return Judgement::PreconditionFailed,
        (None, Some(date)) if modified > date.as_secs() => return Judgement::PreconditionFailed,
        _ => {}
    }
    match (&conditions.if_none_match, conditions.if_modified_since) {
        (Some(etags), _) if holds(etags, etag) => Judgement::NotModified,
        (None, Some(date)) if modified <= date.as_secs() => Judgement::NotModified,
        _ => Judgement::Send,
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::{Judgement, ReadConditions, judge, parse_etags};

    const MODIFIED: u64 = 1_000_500;

    fn at(secs: u64) -> Option<Timestamp> {
        Some(Timestamp::from_millis(secs * 1000))
    }

    fn tags(etag: &str) -> Option<Vec<String>> {
        Some(parse_etags(etag))
    }

    #[test]
    fn precedence_is_that_of_aws() {
        use Judgement::{NotModified, PreconditionFailed, Send};
        let none = ReadConditions::default();
        let cases = [
            (none.clone(), Send),
            (ReadConditions { if_match: tags("\"a\""), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("*"), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("\"b\", \"a\""), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("b"), ..none.clone() }, PreconditionFailed),
            (ReadConditions { if_none_match: tags("a"), ..none.clone() }, NotModified),
            (ReadConditions { if_none_match: tags("W/\"a\""), ..none.clone() }, NotModified),
            (ReadConditions { if_none_match: tags("b"), ..none.clone() }, Send),
            (ReadConditions { if_modified_since: at(1000), ..none.clone() }, NotModified),
            (ReadConditions { if_modified_since: at(999), ..none.clone() }, Send),
            (ReadConditions { if_unmodified_since: at(1000), ..none.clone() }, Send),
            (ReadConditions { if_unmodified_since: at(999), ..none.clone() }, PreconditionFailed),
            (ReadConditions { if_match: tags("a"), if_unmodified_since: at(999), ..none.clone() }, Send),
            (ReadConditions { if_none_match: tags("a"), if_modified_since: at(999), ..none.clone() }, NotModified),
            (ReadConditions { if_none_match: tags("b"), if_modified_since: at(1000), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("b"), if_none_match: tags("a"), ..none }, PreconditionFailed),
        ];
        for (conditions, expected) in cases {
            assert_eq!(judge(&conditions, "a", Timestamp::from_millis(MODIFIED)), expected, "{conditions:?}");
        }
    }
}
