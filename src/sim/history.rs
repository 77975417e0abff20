use std::collections::BTreeMap;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::put::{Preconditions, PutObject};
use garage_types::{BucketId, ObjectKey};
pub fn put(bucket: BucketId, key: &str) -> PutObject {
    PutObject {
        bucket,
        key: ObjectKey::parse(key).unwrap(),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    }
}
