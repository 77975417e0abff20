//! The `Range` header of a read: which bytes of a content are wanted.
//!
//! As AWS does it: one range of bytes; what is not understood (another unit, several ranges, bad numbers) is ignored and the whole
//! is sent; a range that begins behind the end is refused with 416.

use std::ops::Range;

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    Part(Range<u64>),
    /// 416.
    Unsatisfiable,
}

/// Reads a `Range` header for a content of `size` bytes.
pub fn parse(header: &str, size: u64) -> Wanted {
    let Some(spec) = header.trim().strip_prefix("bytes=") else { return Wanted::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Wanted::Whole };
    let (first, last) = (first.trim(), last.trim());
    match (number(first), number(last)) {
        (None, Some(length)) if first.is_empty() => suffix(length, size),
        (Some(start), None) if last.is_empty() => from_to(start, u64::MAX, size),
        (Some(start), Some(end)) if start <= end => from_to(start, end, size),
        _ => Wanted::Whole,
    }
}

/// Plain digits only; a number too large for us is as good as the largest.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

fn suffix(length: u64, size: u64) -> Wanted {
    if length == 0 || size == 0 { Wanted::Unsatisfiable } else { Wanted::Part(size - length.min(size)..size) }
}

fn from_to(start: u64, end: u64, size: u64) -> Wanted {
    if start >= size { Wanted::Unsatisfiable } else { Wanted::Part(start..end.saturating_add(1).min(size)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Wanted, parse};

    #[test]
    fn ranges_are_read_as_aws_reads_them() {
        let cases = [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=2-4", 10, Wanted::Part(2..5)),
            ("bytes=5-", 10, Wanted::Part(5..10)),
            ("bytes=5-99", 10, Wanted::Part(5..10)),
            ("bytes=-3", 10, Wanted::Part(7..10)),
            ("bytes=-30", 10, Wanted::Part(0..10)),
            ("bytes=10-", 10, Wanted::Unsatisfiable),
            ("bytes=10-12", 10, Wanted::Unsatisfiable),
            ("bytes=-0", 10, Wanted::Unsatisfiable),
            ("bytes=0-", 0, Wanted::Unsatisfiable),
            ("bytes=4-2", 10, Wanted::Whole),
            ("bytes=0-1,3-4", 10, Wanted::Whole),
            ("bytes=a-b", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
            ("bytes=+1-2", 10, Wanted::Whole),
            ("lines=1-2", 10, Wanted::Whole),
            ("bytes=0-99999999999999999999999", 10, Wanted::Part(0..10)),
        ];
        for (header, size, wanted) in cases {
            assert_eq!(parse(header, size), wanted, "{header} of {size}");
        }
    }

    proptest! {
        #[test]
        fn a_part_always_lies_within_the_content(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in any::<u64>()) {
            if let Wanted::Part(range) = parse(&header, size) {
                assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
