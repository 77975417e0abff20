//! Keys and ranges as callers may write them, reduced to what every engine treats alike.
//!
//! Pure. No key is empty, and an engine may refuse to look for an empty one, or panic on a range that ends before it begins: none of
//! these ever reaches it.

use std::ops::Bound;

use crate::engine::{Bounds, KEY_LENGTH_MAX, VALUE_LENGTH_MAX};
use crate::error::DbError;

/// The same range with bounds an engine can take; `None` when no key can be within it.
pub(crate) fn check<'b>(bounds: Bounds<'b>) -> Option<Bounds<'b>> {
    let lower = match bounds.0 {
        Bound::Included([]) | Bound::Excluded([]) => Bound::Unbounded,
        lower => lower,
    };
    let upper = bounds.1;
    match (lower, upper) {
        (_, Bound::Included([]) | Bound::Excluded([])) => None,
        (Bound::Included(low), Bound::Included(high)) if low > high => None,
        (Bound::Included(low), Bound::Excluded(high)) | (Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high))
            if low >= high =>
        {
            None
        }
        _ => Some((lower, upper)),
    }
}

/// Whether a row may have this key; looking up one that may not finds nothing.
pub(crate) fn may_exist(key: &[u8]) -> bool {
    check_key(key).is_ok()
}

/// # Errors
/// [`DbError::KeyEmpty`], [`DbError::KeyTooLong`].
pub(crate) fn check_key(key: &[u8]) -> Result<(), DbError> {
    match key.len() {
        0 => Err(DbError::KeyEmpty),
        1..=KEY_LENGTH_MAX => Ok(()),
        length => Err(DbError::KeyTooLong { length, max: KEY_LENGTH_MAX }),
    }
}

/// # Errors
/// [`DbError::ValueTooLong`].
pub(crate) fn check_value(value: &[u8]) -> Result<(), DbError> {
    if value.len() > VALUE_LENGTH_MAX {
        return Err(DbError::ValueTooLong { length: value.len(), max: VALUE_LENGTH_MAX });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::Bound::{Excluded, Included, Unbounded};

    use super::check;

    #[test]
    fn range_that_ends_before_it_begins_is_empty() {
        assert_eq!(check((Included(b"b"), Included(b"a"))), None);
        assert_eq!(check((Included(b"b"), Excluded(b"a"))), None);
        assert_eq!(check((Excluded(b"b"), Included(b"a"))), None);
    }

    #[test]
    fn range_around_one_key_holds_it_only_if_both_ends_do() {
        assert_eq!(check((Included(b"a"), Included(b"a"))), Some((Included(&b"a"[..]), Included(&b"a"[..]))));
        assert_eq!(check((Included(b"a"), Excluded(b"a"))), None);
        assert_eq!(check((Excluded(b"a"), Included(b"a"))), None);
        assert_eq!(check((Excluded(b"a"), Excluded(b"a"))), None);
    }

    #[test]
    fn empty_key_bounds_everything_from_below_and_nothing_from_above() {
        assert_eq!(check((Included(b""), Unbounded)), Some((Unbounded, Unbounded)));
        assert_eq!(check((Excluded(b""), Unbounded)), Some((Unbounded, Unbounded)));
        assert_eq!(check((Unbounded, Included(b""))), None);
        assert_eq!(check((Unbounded, Excluded(b""))), None);
    }
}
