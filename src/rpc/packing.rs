//! Long replies made short: compressed by who answers, when who asks can undo it.
//!
//! What a stream may send at once is bounded ([`garage_net`]), and a wait for more is a round trip between places. A page of a listing is
//! much repetition, and fits when it is compressed.

use crate::wire::{HEAD_BYTES_MAX, MessageError};

/// The fastest of zstd's usual levels: some 300 MB/s of rows on one core, to a third of their length.
const LEVEL: i32 = 1;

/// The compressed form, or `None` when it would not be shorter.
pub(crate) fn pack(plain: &[u8]) -> Option<Vec<u8>> {
    let mut packed = vec![0; plain.len().checked_sub(1)?];
    // The one failure in practice is that the output does not fit; for any other, sending it plain is the right answer too.
    let length = zstd::bulk::compress_to_buffer(plain, &mut packed, LEVEL).ok()?;
    packed.truncate(length);
    Some(packed)
}

/// The plain bytes, exactly `plain_bytes` of them; no more memory than that is used for them, whatever the input says.
///
/// # Errors
/// [`MessageError::TooLong`]: more are claimed than a message may have. [`MessageError::Io`]: it is something else.
pub(crate) fn unpack(packed: &[u8], plain_bytes: usize) -> Result<Vec<u8>, MessageError> {
    if plain_bytes > HEAD_BYTES_MAX {
        return Err(MessageError::TooLong { what: "an unpacked body", claimed: plain_bytes, max: HEAD_BYTES_MAX });
    }
    let plain = zstd::bulk::decompress(packed, plain_bytes)?;
    if plain.len() == plain_bytes { Ok(plain) } else { Err(std::io::Error::from(std::io::ErrorKind::InvalidData).into()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{pack, unpack};
    use crate::wire::{HEAD_BYTES_MAX, MessageError};

    #[test]
    fn rows_that_resemble_each_other_shrink_and_noise_stays_plain() {
        let rows: Vec<u8> = (0..1000).flat_map(|n| format!("photos/2026/{n:05}.jpeg\u{1}same for all").into_bytes()).collect();
        let packed = pack(&rows).unwrap();
        assert!(packed.len() * 4 < rows.len(), "{} of {}", packed.len(), rows.len());
        assert_eq!(unpack(&packed, rows.len()).unwrap(), rows);
        assert_eq!(pack(b"x"), None);
        assert_eq!(pack(b""), None);
    }

    #[test]
    fn another_length_than_announced_is_refused() {
        let packed = pack(&[7; 5000]).unwrap();
        assert!(unpack(&packed, 4999).is_err() && unpack(&packed, 5001).is_err() && unpack(&packed[1..], 5000).is_err());
        assert!(matches!(unpack(&packed, HEAD_BYTES_MAX + 1), Err(MessageError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_or_have_the_length_announced(packed in any::<Vec<u8>>()) {
            if let Ok(plain) = unpack(&packed, 1000) {
                prop_assert_eq!(plain.len(), 1000);
            }
        }
    }
}
