//! How much a bucket holds on this node: counted in the transactions that change it, so never off by a crash.

use garage_db::{DbError, Snapshot, Tree};
use garage_table::digest::RowDigest;
use garage_table::transaction::RowTransaction;
use garage_types::BucketId;

/// What is in a bucket, or a change of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub objects: i64,
    pub bytes: i64,
    /// All unfinished uploads, simple and multipart.
    pub uploads: i64,
    pub multipart_uploads: i64,
    /// Bytes of finished parts of unfinished multipart uploads.
    pub multipart_bytes: i64,
}

impl Counts {
    fn fields(&self) -> [i64; 5] {
        [self.objects, self.bytes, self.uploads, self.multipart_uploads, self.multipart_bytes]
    }

    fn of_fields([objects, bytes, uploads, multipart_uploads, multipart_bytes]: [i64; 5]) -> Self {
        Counts { objects, bytes, uploads, multipart_uploads, multipart_bytes }
    }

    /// An object of so many bytes.
    pub fn of_object(size: u64) -> Counts {
        Counts { objects: 1, bytes: i64::try_from(size).unwrap_or(i64::MAX), ..Counts::default() }
    }

    /// With the parts of unfinished uploads among the bytes, which they occupy as objects do.
    #[must_use]
    pub fn with_open_parts(&self) -> Counts {
        Counts { bytes: self.bytes.saturating_add(self.multipart_bytes), ..*self }
    }

    #[must_use]
    pub fn plus(&self, other: &Counts) -> Counts {
        let (mine, theirs) = (self.fields(), other.fields());
        Counts::of_fields(std::array::from_fn(|index| mine[index].saturating_add(theirs[index])))
    }

    #[must_use]
    pub fn minus(&self, other: &Counts) -> Counts {
        let (mine, theirs) = (self.fields(), other.fields());
        Counts::of_fields(std::array::from_fn(|index| mine[index].saturating_sub(theirs[index])))
    }

    /// The greater of each: how replicas that count the same things are read together.
    #[must_use]
    pub fn max(&self, other: &Counts) -> Counts {
        let (mine, theirs) = (self.fields(), other.fields());
        Counts::of_fields(std::array::from_fn(|index| mine[index].max(theirs[index])))
    }

    /// Five big-endian numbers; a shorter one from an older version reads as zero where it ends.
    pub fn encode(&self) -> Vec<u8> {
        self.fields().iter().flat_map(|field| field.to_be_bytes()).collect()
    }

    pub fn decode(bytes: &[u8]) -> Self {
        let mut fields = [0; 5];
        for (field, chunk) in fields.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *field = i64::from_be_bytes(*chunk);
        }
        Counts::of_fields(fields)
    }
}

/// Bytes of the checksum behind the counts, which are a multiple of eight: those that an older version stored have none.
const CHECKSUM_LENGTH: usize = 4;

fn checksum(bucket: &[u8], counts: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    (RowDigest::of(bucket, counts).0 as u32).to_be_bytes()
}

fn seal(bucket: &BucketId, counts: &Counts) -> Vec<u8> {
    let mut stored = counts.encode();
    stored.extend(checksum(bucket.as_bytes(), &stored));
    stored
}

/// What is stored under a bucket's key; `None`: not what was stored.
pub fn unseal(bucket: &[u8], stored: &[u8]) -> Option<Counts> {
    match stored.split_last_chunk::<CHECKSUM_LENGTH>() {
        Some((counts, sum)) if stored.len() % 8 == CHECKSUM_LENGTH => {
            (*sum == checksum(bucket, counts)).then(|| Counts::decode(counts))
        }
        _ => Some(Counts::decode(stored)),
    }
}

/// The tree with one row of counts a bucket.
#[derive(Clone, Copy, Debug)]
pub struct BucketCounters(pub Tree);

/// Beside the buckets' rows, whose keys are longer: how often the counters came into doubt, while they are.
const DOUBT: &[u8] = b"doubt";

impl BucketCounters {
    /// A row was replaced, and nobody knows what was counted of it.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn doubt(&self, tx: &mut RowTransaction<'_, '_>) -> Result<(), DbError> {
        let before = tx.raw().get(self.0, DOUBT)?.and_then(|bytes: Vec<u8>| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        tx.raw().insert(self.0, DOUBT, &before.wrapping_add(1).to_be_bytes())
    }

    /// Whether the counters may be wrong.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn is_doubted(&self, tx: &mut RowTransaction<'_, '_>) -> Result<bool, DbError> {
        Ok(tx.raw().get(self.0, DOUBT)?.is_some())
    }

    /// Which doubt there is; for [`Self::trust`].
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn doubted(&self, tx: &Snapshot<'_>) -> Result<Option<Vec<u8>>, DbError> {
        tx.get(self.0, DOUBT)
    }

    /// Ends a doubt, unless another one has come meanwhile.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn trust(&self, tx: &mut RowTransaction<'_, '_>, doubt: &[u8]) -> Result<(), DbError> {
        if tx.raw().get(self.0, DOUBT)?.is_some_and(|now: Vec<u8>| now == doubt) {
            tx.raw().remove(self.0, DOUBT)?;
        }
        Ok(())
    }

    /// What a bucket holds here. What cannot be read, or cannot be, raises a doubt and counts from nothing until that is settled.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn get(&self, tx: &mut RowTransaction<'_, '_>, bucket: &BucketId) -> Result<Counts, DbError> {
        let stored: Option<Vec<u8>> = tx.raw().get(self.0, bucket.as_bytes())?;
        let Some(stored) = stored else { return Ok(Counts::default()) };
        match unseal(bucket.as_bytes(), &stored).filter(|counts| counts.objects >= 0) {
            Some(counts) => Ok(counts),
            None => {
                tracing::error!(%bucket, "the counters of a bucket are damaged: they are worked out anew from its rows");
                tx.raw().insert(self.0, bucket.as_bytes(), &seal(bucket, &Counts::default()))?;
                self.doubt(tx)?;
                Ok(Counts::default())
            }
        }
    }

    /// # Errors
    /// The metadata engine's.
    pub fn add(&self, tx: &mut RowTransaction<'_, '_>, bucket: &BucketId, change: &Counts) -> Result<(), DbError> {
        if *change == Counts::default() {
            return Ok(());
        }
        let counts = self.get(tx, bucket)?.plus(change);
        tx.raw().insert(self.0, bucket.as_bytes(), &seal(bucket, &counts))
    }
}

#[cfg(test)]
mod tests {
    use garage_types::BucketId;

    use super::{Counts, seal, unseal};

    #[test]
    fn a_flipped_bit_in_counters_is_noticed_and_counters_without_a_checksum_are_read() {
        let (bucket, counts) = (BucketId::from_bytes([3; 32]), Counts { objects: 1, ..Counts::default() });
        let stored = seal(&bucket, &counts);
        assert_eq!(unseal(bucket.as_bytes(), &stored), Some(counts));
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(bucket.as_bytes(), &flipped), None, "bit {bit}");
        }
        assert_eq!(unseal(bucket.as_bytes(), &counts.encode()), Some(counts));
        // As a version without checksums reads it.
        assert_eq!(Counts::decode(&stored), counts);
    }

    #[test]
    fn counts_round_trip_and_read_older_rows() {
        let counts = Counts { objects: 3, bytes: -7, uploads: 1, multipart_uploads: 1, multipart_bytes: 9 };
        assert_eq!(Counts::decode(&counts.encode()), counts);
        assert_eq!(Counts::decode(&counts.encode()[..16]), Counts { objects: 3, bytes: -7, ..Counts::default() });
        assert_eq!(counts.minus(&counts), Counts::default());
        assert_eq!(counts.with_open_parts(), Counts { bytes: 2, ..counts });
    }
}
