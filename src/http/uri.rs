//! Percent-encoding as AWS does it, and query strings.
//!
//! Pure. What is decoded here is decoded exactly once and never cleaned: `%2F`, `..`, `//` and control characters are
//! ordinary content of an object key.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but AWS's unreserved characters: letters, digits, `-`, `.`, `_` and `~`.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same, with `/` left alone.
const PATH: &AsciiSet = &NAME.remove(b'/');

/// Why a path or query string cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("a '%' is not followed by two hexadecimal digits")]
    PercentEncoding,
    #[error("the decoded text is not UTF-8")]
    NotUtf8,
}

/// `text` with everything but unreserved characters escaped, `/` too: a query's name or value, or `encoding-type=url`.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, NAME).to_string()
}

/// `path` with everything but unreserved characters and `/` escaped.
pub fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, PATH).to_string()
}

/// Decodes `%XX` once; `+` stays a plus.
///
/// # Errors
/// [`UriError`] for a broken escape or a result that is not UTF-8.
pub fn decode(text: &str) -> Result<String, UriError> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => decoded.push(hex_pair(rest.next(), rest.next())?),
            other => decoded.push(other),
        }
    }
    String::from_utf8(decoded).map_err(|_invalid| UriError::NotUtf8)
}

fn hex_pair(high: Option<u8>, low: Option<u8>) -> Result<u8, UriError> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or(UriError::PercentEncoding);
    // Two hexadecimal digits are below 256.
    Ok((digit(high)? * 16 + digit(low)?) as u8)
}

/// The pairs of a query string in the order received, each side decoded once. A name without `=` has an empty value.
///
/// `+` is a space here, as AWS reads forms and queries, while in a path it is a plus.
///
/// # Errors
/// [`UriError`], as [`decode`].
pub fn decode_query(query: &str) -> Result<Vec<QueryPair>, UriError> {
    let side = |text: &str| if text.contains('+') { decode(&text.replace('+', " ")) } else { decode(text) };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok(QueryPair { name: side(name)?, value: side(value)? })
        })
        .collect()
}

/// One `name=value` of a query string, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryPair {
    pub name: String,
    pub value: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{UriError, decode, decode_query, encode, encode_path};

    #[test]
    fn only_unreserved_characters_stay_as_they_are() {
        assert_eq!(encode("aZ09-._~ /+é\u{1}"), "aZ09-._~%20%2F%2B%C3%A9%01");
        assert_eq!(encode_path("/a b/%2F"), "/a%20b/%252F");
    }

    #[test]
    fn a_path_is_decoded_once_and_keeps_its_plus() {
        assert_eq!(decode("/a%2Fb%252F+%2e%2E//"), Ok("/a/b%2F+..//".to_owned()));
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["%", "%2", "%zz", "a%2", "%+1", "% 1", "%é"] {
            assert_eq!(decode(text), Err(UriError::PercentEncoding), "{text}");
        }
        assert_eq!(decode("%ff"), Err(UriError::NotUtf8));
    }

    #[test]
    fn a_query_reads_plus_as_space_and_a_bare_name_as_empty() {
        let pairs = decode_query("acl&&prefix=a+b%2B&x==").expect("well formed");
        let pairs: Vec<_> = pairs.iter().map(|pair| (pair.name.as_str(), pair.value.as_str())).collect();
        assert_eq!(pairs, [("acl", ""), ("prefix", "a b+"), ("x", "=")]);
    }

    proptest! {
        #[test]
        fn encoding_round_trips(text in any::<String>()) {
            assert_eq!(decode(&encode(&text)).as_ref(), Ok(&text));
            assert_eq!(decode(&encode_path(&text)).as_ref(), Ok(&text));
        }

        #[test]
        fn no_text_makes_the_decoders_panic(text in any::<String>()) {
            drop((decode(&text), decode_query(&text)));
        }
    }
}
