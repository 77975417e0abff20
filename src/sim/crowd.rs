//! More uploads at once than there is room for their blocks: each of them ends.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_types::ObjectKey;

use crate::world::{BLOCK_SIZE, World};

/// Blocks of each body. All bodies together want four times the room there is (1 MiB, in units of 1 KiB).
const BLOCKS: usize = 8;
const BODIES: usize = 512;

#[tokio::test(start_paused = true)]
async fn uploads_that_wait_for_each_others_room_all_end() {
    let world = World::new(1);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("crowd").await.unwrap();
    let uploads = (0..BODIES).map(|number| {
        let put = PutObject {
            bucket,
            key: ObjectKey::parse(format!("k{number}")).unwrap(),
            headers: BTreeMap::new(),
            checksum: ChecksumAlgorithm::Crc64Nvme,
            owner: None,
            preconditions: Preconditions::default(),
        };
        let body: Vec<u8> = (0..BLOCKS * BLOCK_SIZE).map(|index| (index * 7 + number) as u8).collect();
        garage.put_object(put, Box::new(InMemory::new(body)))
    });
    let all = tokio::time::timeout(std::time::Duration::from_secs(3600), join_all(uploads)).await;
    for written in all.expect("no upload waits for ever") {
        written.unwrap();
    }
}
