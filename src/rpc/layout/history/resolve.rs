//! Ending a conflict between two layouts with one number: an operator picks one, every node agrees anew.

use std::sync::Arc;

use super::{Conflict, LayoutHistory};
use crate::layout::error::LayoutError;
use crate::layout::version::VersionKey;

/// The version in conflict whose digest begins with `prefix`, in hexadecimal digits.
///
/// # Errors
/// [`LayoutError::NoConflict`]; [`LayoutError::DigestPrefix`] unless exactly one fits.
pub fn chosen(conflicts: &[Conflict], prefix: &str) -> Result<VersionKey, LayoutError> {
    if conflicts.is_empty() {
        return Err(LayoutError::NoConflict);
    }
    let wanted = prefix.to_ascii_lowercase();
    let keys = conflicts
        .iter()
        .flat_map(|conflict| conflict.digests.iter().map(|digest| VersionKey { number: conflict.number, digest: *digest }));
    let matches: Vec<VersionKey> = keys.filter(|key| !wanted.is_empty() && key.digest.hex().starts_with(&wanted)).collect();
    match matches.as_slice() {
        [key] => Ok(*key),
        _ => Err(LayoutError::DigestPrefix { prefix: prefix.to_owned(), found: matches.len() }),
    }
}

impl LayoutHistory {
    /// Ends a conflict: `chosen` stays, the others with its number are rejected, and the chosen layout is made once more under the next
    /// number, so that every node has to agree anew.
    ///
    /// # Errors
    /// [`LayoutError::NoConflict`]; [`LayoutError::UnknownVersion`] when `chosen` is not one of the versions in conflict.
    pub fn resolve(&mut self, chosen: VersionKey) -> Result<(), LayoutError> {
        let conflicts = self.conflicts();
        let Some(conflict) = conflicts.iter().find(|conflict| conflict.number == chosen.number) else {
            return Err(LayoutError::NoConflict);
        };
        let Some(version) = self.versions.get(&chosen).filter(|_| conflict.digests.contains(&chosen.digest)) else {
            return Err(LayoutError::UnknownVersion { key: chosen });
        };
        let next = version.renumbered(self.current_number() + 1);
        let losers = conflict.digests.iter().filter(|digest| **digest != chosen.digest);
        self.rejected.extend(losers.map(|digest| VersionKey { number: chosen.number, digest: *digest }));
        self.versions.insert(next.key(), Arc::new(next));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::chosen;
    use crate::layout::error::LayoutError;
    use crate::layout::history::Conflict;
    use crate::layout::version::LayoutDigest;

    #[test]
    fn a_layout_is_chosen_by_the_beginning_of_its_digest() {
        let digests = [0xab, 0xac].map(|byte| LayoutDigest::from_bytes([byte; 32])).to_vec();
        let conflicts = [Conflict { number: 4, digests: digests.clone() }];
        let key = chosen(&conflicts, "AC").unwrap();
        assert_eq!((key.number, key.digest), (4, digests[1]));
        assert_eq!(chosen(&conflicts, &"ab".repeat(32)).unwrap().digest, digests[0]);
        for (prefix, found) in [("a", 2), ("", 0), ("b", 0)] {
            assert!(
                matches!(chosen(&conflicts, prefix), Err(LayoutError::DigestPrefix { found: f, .. }) if f == found),
                "{prefix}"
            );
        }
        assert!(matches!(chosen(&[], "ab"), Err(LayoutError::NoConflict)));
    }
}
