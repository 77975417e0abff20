//! Rows come from disks and other nodes: whatever the bytes are, reading them ends in a row or an error, and a row can be written again.

use garage_types::codec::{Format, decode, encode};
use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::alias::AliasRow;
use crate::block_ref::BlockRefRow;
use crate::bucket::BucketRow;
use crate::key::KeyRow;
use crate::object::{Condition, ObjectRow, Refusal};
use crate::part::PartRow;
use crate::resync_queue::BlockFailure;
use crate::upload::UploadRow;
use crate::version::VersionRow;

/// Reads `body` behind the right tag, and what came of it once more.
fn read<T: Format + Serialize + DeserializeOwned>(body: &[u8]) {
    let tagged = [T::TAG.as_bytes(), body].concat();
    if let Ok(row) = decode::<T>(&tagged) {
        assert!(decode::<T>(&encode(&row)).is_ok(), "{}: what was read cannot be read again: {tagged:?}", T::TAG);
    }
    if !body.starts_with(T::TAG.as_bytes()) {
        assert!(decode::<T>(body).is_err(), "{}: read without its tag", T::TAG);
    }
}

fn read_as_everything(body: &[u8]) {
    read::<AliasRow>(body);
    read::<BlockFailure>(body);
    read::<BlockRefRow>(body);
    read::<BucketRow>(body);
    read::<Condition>(body);
    read::<KeyRow>(body);
    read::<ObjectRow>(body);
    read::<PartRow>(body);
    read::<Refusal>(body);
    read::<UploadRow>(body);
    read::<VersionRow>(body);
}

/// Bytes that are often MessagePack: small maps, arrays, texts and numbers with the field names that rows have.
fn plausible(choices: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in choices {
        match kind % 8 {
            0 => bytes.push(0x80 | (value % 6)),
            1 => bytes.push(0x90 | (value % 4)),
            2 => bytes.extend([0xa1, b'a' + value % 26]),
            3 => bytes.push(value % 128),
            4 => bytes.extend([0xc4, 32].into_iter().chain([*value; 32])),
            5 => bytes.push([0xc0, 0xc2, 0xc3][usize::from(value % 3)]),
            6 => bytes.extend([0xcf].into_iter().chain([*value; 8])),
            _ => bytes.push(*value),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn no_bytes_make_reading_a_row_panic(noise in vec(any::<u8>(), 0..200), choices in vec(any::<(u8, u8)>(), 0..40)) {
        read_as_everything(&noise);
        read_as_everything(&plausible(&choices));
    }
}

#[test]
fn lengths_that_are_only_claimed_cost_nothing() {
    // Arrays, maps, texts and binaries of 2^32 - 1 entries that never come.
    for claim in [0xdd, 0xdf, 0xdb, 0xc6] {
        read_as_everything(&[claim, 0xff, 0xff, 0xff, 0xff]);
        read_as_everything(&[0x81, 0xa1, b'k', claim, 0xff, 0xff, 0xff, 0xff]);
    }
}
