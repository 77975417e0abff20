//! zstd, kept from costing much where it gains nothing, and from yielding more than was announced.
//!
//! Pure. Called by [`crate::StoredBlock`] only, on threads that may be busy for a while.

use crate::stored::ContentError;

/// From this level and length on, samples decide whether compressing the whole is worth trying. Below, zstd itself passes over noise at
/// more than 4 GiB/s; at level 19 it takes 45 ms for a MiB.
const SAMPLED_FROM_LEVEL: i32 = 10;
const SAMPLED_FROM_LEN: usize = 64 * 1024;
const SAMPLE_LEN: usize = 4 * 1024;
const SAMPLES: usize = 4;

/// The compressed form of `plain`, or `None` when it would not be smaller or hardly could be.
///
/// At high levels, repetition at long distances in data that is otherwise random is not seen by the samples; such a block stays raw.
pub(crate) fn if_smaller(plain: &[u8], level: i32) -> Option<Vec<u8>> {
    if level >= SAMPLED_FROM_LEVEL && plain.len() >= SAMPLED_FROM_LEN && !looks_compressible(plain) {
        return None;
    }
    compress_below(plain, plain.len(), level)
}

/// The plain bytes, exactly `plain_len` of them; no more memory than that is used for them, whatever the input says.
pub(crate) fn decompress(stored: &[u8], plain_len: usize) -> Result<Vec<u8>, ContentError> {
    let plain = zstd::bulk::decompress(stored, plain_len).map_err(|source| ContentError::Undecodable { plain_len, source })?;
    if plain.len() == plain_len { Ok(plain) } else { Err(ContentError::PlainLength { expected: plain_len, found: plain.len() }) }
}

/// Whether pieces taken from all over the data become at least 1/32 smaller at the fastest level.
fn looks_compressible(plain: &[u8]) -> bool {
    let mut sample = Vec::with_capacity(SAMPLES * SAMPLE_LEN);
    let stride = (plain.len() - SAMPLE_LEN) / (SAMPLES - 1);
    for start in (0..SAMPLES).map(|index| index * stride) {
        sample.extend(&plain[start..start + SAMPLE_LEN]);
    }
    compress_below(&sample, sample.len() - sample.len() / 32, 1).is_some()
}

/// Compresses into fewer than `limit` bytes, or not at all.
fn compress_below(plain: &[u8], limit: usize, level: i32) -> Option<Vec<u8>> {
    let mut out = vec![0; limit.checked_sub(1)?];
    // The one failure in practice is that the output does not fit; for any other, storing the block raw is the right answer too.
    let len = zstd::bulk::compress_to_buffer(plain, &mut out, level).ok()?;
    out.truncate(len);
    out.shrink_to_fit();
    Some(out)
}

#[cfg(test)]
mod tests {
    use garage_types::Random;
    use garage_types::random::SeededRandom;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{decompress, if_smaller};
    use crate::stored::ContentError;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        SeededRandom::new(1).fill(&mut bytes);
        bytes
    }

    #[test]
    fn noise_is_left_as_it_is() {
        for len in [0, 1, 100, 70_000, 1 << 20] {
            for level in [-1, 1, 3, 19] {
                assert_eq!(if_smaller(&noise(len), level), None, "{len} bytes at level {level}");
            }
        }
    }

    #[test]
    fn a_block_of_which_a_part_is_compressible_is_compressed() {
        let mut plain = noise(1 << 20);
        plain[300_000..].fill(b'x');
        for level in [3, 12] {
            assert!(if_smaller(&plain, level).unwrap().len() < 310_000, "level {level}");
        }
    }

    #[test]
    fn more_or_less_than_the_announced_length_is_refused() {
        let stored = if_smaller(&[0; 100_000], 3).unwrap();
        assert!(decompress(&stored, 100_000).is_ok());
        assert!(matches!(decompress(&stored, 99_999), Err(ContentError::Undecodable { .. })));
        assert!(matches!(decompress(&stored, 100_001), Err(ContentError::PlainLength { found: 100_000, .. })));
        for end in 0..stored.len() {
            assert!(decompress(&stored[..end], 100_000).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn what_was_compressed_decompresses(word in any::<[u8; 7]>(), count in 0..30_000_usize, level in -5..12) {
            let plain = word.repeat(count);
            if let Some(stored) = if_smaller(&plain, level) {
                prop_assert_eq!(decompress(&stored, plain.len()).unwrap(), plain);
            }
        }

        #[test]
        fn hostile_input_is_an_error_or_the_right_length(stored in any::<Vec<u8>>()) {
            if let Ok(plain) = decompress(&stored, 1000) {
                prop_assert_eq!(plain.len(), 1000);
            }
        }
    }
}
