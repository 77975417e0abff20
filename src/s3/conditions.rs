//! Conditional reads: `If-Match`, `If-None-Match`, `If-Modified-Since`, `If-Unmodified-Since`, with AWS's precedence.
//!
//! `If-Match` that holds makes `If-Unmodified-Since` irrelevant; `If-None-Match` that does not hold answers 304 whatever
//! `If-Modified-Since` says. Dates are compared in whole seconds and ignored when malformed; a copy made "in the future" is none, so
//! such an `If-Modified-Since` is ignored as well.

use garage_http::dates::parse_http_date;
use garage_model::put::Preconditions;
use garage_types::Timestamp;

/// The conditions of a read, dates already parsed (`None` when absent or malformed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadConditions {
    pub if_match: Option<Vec<String>>,
    pub if_none_match: Option<Vec<String>>,
    pub if_modified_since: Option<Timestamp>,
    pub if_unmodified_since: Option<Timestamp>,
}

/// One of the conditions of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    IfMatch,
    IfNoneMatch,
    IfModifiedSince,
    IfUnmodifiedSince,
}

impl Condition {
    /// As AWS writes it in `<Condition>`.
    pub fn name(self) -> &'static str {
        match self {
            Condition::IfMatch => "If-Match",
            Condition::IfNoneMatch => "If-None-Match",
            Condition::IfModifiedSince => "If-Modified-Since",
            Condition::IfUnmodifiedSince => "If-Unmodified-Since",
        }
    }

    /// The condition that a write failed by which was given these.
    ///
    /// A write may only say `If-None-Match: *`, and `PreconditionFailed` is only said where there is an object (a missing one is
    /// `NoSuchKey` to `If-Match`): so that condition failed whenever it was given.
    pub fn failed_of(preconditions: &Preconditions) -> Self {
        if preconditions.if_none_match.is_some() { Condition::IfNoneMatch } else { Condition::IfMatch }
    }
}

/// What to do about a read. The condition is the one that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    Send,
    NotModified(Condition),
    PreconditionFailed(Condition),
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

/// Judges a read, at `now`, of a content with this ETag, last changed at `modified`.
pub fn judge(conditions: &ReadConditions, etag: &str, modified: Timestamp, now: Timestamp) -> Judgement {
    let (modified, now) = (modified.as_secs(), now.as_secs());
    match (&conditions.if_match, conditions.if_unmodified_since) {
        (Some(etags), _) if !holds(etags, etag) => return Judgement::PreconditionFailed(Condition::IfMatch),
        (None, Some(date)) if modified > date.as_secs() => return Judgement::PreconditionFailed(Condition::IfUnmodifiedSince),
        _ => {}
    }
    match (&conditions.if_none_match, conditions.if_modified_since) {
        (Some(etags), _) if holds(etags, etag) => Judgement::NotModified(Condition::IfNoneMatch),
        (None, Some(date)) if modified <= date.as_secs() && date.as_secs() <= now => {
            Judgement::NotModified(Condition::IfModifiedSince)
        }
        _ => Judgement::Send,
    }
}

/// Whether a range is to be served to a client that holds a part of the content `if_range` names: an ETag, or the date of the last
/// change. A weak ETag or anything else never fits: the client gets the whole, and no mixture of two contents.
pub fn range_applies(if_range: &str, etag: &str, modified: Timestamp) -> bool {
    match if_range.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(wanted) => wanted == etag,
        None => parse_http_date(if_range).is_ok_and(|date| date.as_secs() == modified.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use garage_http::dates::http_date;

    use garage_model::put::Preconditions;

    use super::{Condition, Judgement, ReadConditions, judge, parse_etags, range_applies};

    const MODIFIED: Timestamp = Timestamp::from_millis(1_000_500);
    const NOW: Timestamp = Timestamp::from_millis(2_000_000);

    fn at(secs: u64) -> Option<Timestamp> {
        Some(Timestamp::from_millis(secs * 1000))
    }

    fn tags(etag: &str) -> Option<Vec<String>> {
        Some(parse_etags(etag))
    }

    #[test]
    fn precedence_is_that_of_aws() {
        use Condition::{IfMatch, IfModifiedSince, IfNoneMatch, IfUnmodifiedSince};
        use Judgement::{NotModified, PreconditionFailed, Send};
        let none = ReadConditions::default();
        let cases = [
            (none.clone(), Send),
            (ReadConditions { if_match: tags("\"a\""), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("*"), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("\"b\", \"a\""), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("b"), ..none.clone() }, PreconditionFailed(IfMatch)),
            (ReadConditions { if_none_match: tags("a"), ..none.clone() }, NotModified(IfNoneMatch)),
            (ReadConditions { if_none_match: tags("W/\"a\""), ..none.clone() }, NotModified(IfNoneMatch)),
            (ReadConditions { if_none_match: tags("b"), ..none.clone() }, Send),
            (ReadConditions { if_modified_since: at(1000), ..none.clone() }, NotModified(IfModifiedSince)),
            (ReadConditions { if_modified_since: at(999), ..none.clone() }, Send),
            (ReadConditions { if_modified_since: at(2000), ..none.clone() }, NotModified(IfModifiedSince)),
            (ReadConditions { if_modified_since: at(2001), ..none.clone() }, Send),
            (ReadConditions { if_unmodified_since: at(2001), ..none.clone() }, Send),
            (ReadConditions { if_unmodified_since: at(1000), ..none.clone() }, Send),
            (ReadConditions { if_unmodified_since: at(999), ..none.clone() }, PreconditionFailed(IfUnmodifiedSince)),
            (ReadConditions { if_match: tags("a"), if_unmodified_since: at(999), ..none.clone() }, Send),
            (ReadConditions { if_none_match: tags("a"), if_modified_since: at(999), ..none.clone() }, NotModified(IfNoneMatch)),
            (ReadConditions { if_none_match: tags("b"), if_modified_since: at(1000), ..none.clone() }, Send),
            (ReadConditions { if_match: tags("b"), if_none_match: tags("a"), ..none }, PreconditionFailed(IfMatch)),
        ];
        for (conditions, expected) in cases {
            assert_eq!(judge(&conditions, "a", MODIFIED, NOW), expected, "{conditions:?}");
        }
    }

    #[test]
    fn the_condition_that_a_write_failed_by_has_its_name() {
        let given = |if_match: Option<&str>, if_none_match: Option<&str>| {
            let tags = |text: Option<&str>| text.map(parse_etags);
            Condition::failed_of(&Preconditions { if_match: tags(if_match), if_none_match: tags(if_none_match) }).name()
        };
        assert_eq!(given(Some("a"), None), "If-Match");
        assert_eq!(given(None, Some("*")), "If-None-Match");
        assert_eq!(given(Some("a"), Some("*")), "If-None-Match");
    }

    #[test]
    fn a_range_applies_only_to_the_content_the_client_holds() {
        let date = |secs: u64| http_date(Timestamp::from_millis(secs * 1000));
        let cases = [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            ("a", false),
            ("*", false),
            ("", false),
            (&date(1000), true),
            (&date(999), false),
            (&date(1001), false),
        ];
        for (if_range, applies) in cases {
            assert_eq!(range_applies(if_range, "a", MODIFIED), applies, "{if_range}");
        }
    }
}
