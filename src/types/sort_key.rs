//! Order-preserving encodings of sort keys: comparing the bytes compares the values, and no key is a prefix of another's.

use crate::Timestamp;

/// Appends `text` so that byte order is the text's order and no encoded text is a prefix of another's.
///
/// Each byte of UTF-8 is at most 0xF4, so one is added to every byte and 0x00 ends the text: no key grows by more than one byte.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    push_text_prefix(out, text);
    out.push(0);
}

/// As [`push_text`] without the end: the common start of every text that begins with `text`.
///
/// `text` may end inside a character when it comes from [`text_bytes_prefix`].
pub fn push_text_prefix(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|byte| byte + 1));
}

/// Splits an encoded text off the front: the text and the bytes after its end. `None` when malformed.
pub fn split_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = bytes[..end].iter().map(|byte| byte.wrapping_sub(1)).collect();
    Some((String::from_utf8(text).ok()?, &bytes[end + 1..]))
}

/// An encoded text and what comes behind it, for people: the text with control characters escaped, the rest in hexadecimal digits.
pub fn shown(bytes: &[u8]) -> String {
    match split_text(bytes) {
        Some((text, [])) => text.escape_debug().to_string(),
        Some((text, rest)) => format!("{} ({})", text.escape_debug(), hex::encode(rest)),
        None => bytes.escape_ascii().to_string(),
    }
}

/// Appends a timestamp so that the newest sorts first.
pub fn push_newest_first(out: &mut Vec<u8>, time: Timestamp) {
    out.extend((!time.as_millis()).to_be_bytes());
}

/// The smallest byte string greater than every string that starts with `prefix`; `None` when there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut bound = prefix.to_vec();
    while let Some(last) = bound.pop() {
        if last < 0xFF {
            bound.push(last + 1);
            return Some(bound);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{after_prefix, push_newest_first, push_text, shown, split_text};
    use crate::Timestamp;

    fn encoded(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        push_text(&mut out, text);
        out
    }

    proptest! {
        #[test]
        fn encoded_texts_order_as_the_texts_do(a in any::<String>(), b in any::<String>()) {
            assert_eq!(encoded(&a).cmp(&encoded(&b)), a.as_bytes().cmp(b.as_bytes()));
            assert!(a == b || !encoded(&b).starts_with(&encoded(&a)));
            let mut followed = encoded(&a);
            followed.extend(b"rest");
            assert_eq!(split_text(&followed), Some((a, &b"rest"[..])));
        }

        #[test]
        fn later_times_sort_first(a in any::<u64>(), b in any::<u64>()) {
            let encode = |millis| { let mut out = Vec::new(); push_newest_first(&mut out, Timestamp::from_millis(millis)); out };
            assert_eq!(encode(a).cmp(&encode(b)), b.cmp(&a));
        }

        #[test]
        fn the_bound_after_a_prefix_is_above_all_that_start_with_it(prefix in any::<Vec<u8>>(), rest in any::<Vec<u8>>()) {
            let mut longer = prefix.clone();
            longer.extend(rest);
            assert!(after_prefix(&prefix).is_none_or(|bound| bound > longer && bound > prefix));
        }
    }

    #[test]
    fn people_see_the_text_and_not_its_encoding() {
        assert_eq!(shown(&encoded("a/b\n")), "a/b\\n");
        assert_eq!(shown(&[encoded("é"), vec![1, 0xFF]].concat()), "é (01ff)");
        assert_eq!(shown(b"\xFF\x02"), "\\xff\\x02");
    }

    #[test]
    fn nothing_comes_after_a_prefix_of_all_ones() {
        assert_eq!(after_prefix(&[0xFF, 0xFF]), None);
        assert_eq!(after_prefix(&[1, 0xFF]), Some(vec![2]));
    }
}
