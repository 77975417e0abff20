//! The power goes at every single step of a node's disk and database: before each file, sync, rename and commit, and between a commit and
//! its answer. Whatever was acknowledged is there afterwards, what was not happened wholly or not at all, and nothing is left of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::StreamExt;
use garage_model::complete::{ListedPart, ListedWhole};
use garage_model::digest::ChecksumAlgorithm;
use garage_model::multipart::{CreateUpload, PutPart, UploadName};
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::upload_end::CompleteUpload;
use garage_model::{Garage, ModelError};
use garage_types::random::SeededRandom;
use garage_types::{BucketId, NodeId, ObjectKey, Random};

use crate::world::World;

type Body = Option<Vec<u8>>;

/// What clients know.
#[derive(Default)]
struct Known {
    node: Option<NodeId>,
    bucket: Option<BucketId>,
    objects: BTreeMap<&'static str, Body>,
    /// The operation that broke off: what its key would hold.
    in_doubt: Option<(&'static str, Body)>,
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn put(bucket: BucketId, text: &str) -> PutObject {
    PutObject {
        bucket,
        key: key(text),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    }
}

impl Known {
    async fn store(&mut self, garage: &Garage, text: &'static str, body: Vec<u8>) -> Result<(), ModelError> {
        self.in_doubt = Some((text, Some(body.clone())));
        let put = put(self.bucket.expect("it was created"), text);
        garage.put_object(put, Box::new(InMemory::new(body))).await?;
        self.acknowledged();
        Ok(())
    }

    async fn delete(&mut self, garage: &Garage, text: &'static str) -> Result<(), ModelError> {
        self.in_doubt = Some((text, None));
        garage.delete_object(self.bucket.expect("it was created"), &key(text), Preconditions::default()).await?;
        self.acknowledged();
        Ok(())
    }

    async fn upload(&mut self, garage: &Garage, text: &'static str, body: Vec<u8>) -> Result<(), ModelError> {
        let bucket = self.bucket.expect("it was created");
        let create = CreateUpload { bucket, key: key(text), headers: BTreeMap::new(), checksum: None, owner: None };
        let upload = UploadName { bucket, key: key(text), id: garage.create_multipart(create).await? };
        // One that is replaced, and the one that counts.
        let mut parts = Vec::new();
        for bytes in [&body[..70], &body] {
            let put = PutPart { upload: upload.clone(), number: 1, checksum: None };
            let written = garage.upload_part(put, Box::new(InMemory::new(bytes.to_vec()))).await?;
            parts = vec![ListedPart { number: 1, etag: written.etag, checksums: Vec::new() }];
        }
        self.in_doubt = Some((text, Some(body)));
        let whole = ListedWhole { parts, ..ListedWhole::default() };
        garage.complete_multipart(CompleteUpload { upload, whole, preconditions: Preconditions::default() }).await?;
        self.acknowledged();
        Ok(())
    }

    fn acknowledged(&mut self) {
        let (text, body) = self.in_doubt.take().expect("an operation was begun");
        self.objects.insert(text, body);
    }
}

fn body(seed: u64, length: usize) -> Vec<u8> {
    let mut body = vec![0; length];
    SeededRandom::new(seed).fill(&mut body);
    body
}

/// Everything a node does with its disk, from its first start on.
async fn story(world: &World, known: &mut Known) -> Result<(), Box<dyn std::error::Error>> {
    let node = world.try_start().await?;
    known.node = Some(node.garage.cluster().node_id());
    let garage = node.garage;
    // As after every start.
    garage.queue_uncounted_files().await?;
    known.bucket = Some(garage.create_bucket("pictures").await?);
    known.store(&garage, "small", body(1, 20)).await?;
    known.store(&garage, "blocks", body(2, 200)).await?;
    known.store(&garage, "gone", body(3, 150)).await?;
    known.store(&garage, "blocks", body(4, 130)).await?;
    known.delete(&garage, "gone").await?;
    known.upload(&garage, "parts", body(5, 300)).await?;
    garage.send_queue().await?;
    world.clock.advance_millis(3_600_000);
    garage.resync_due().await?;
    world.end_power_cut(&SeededRandom::new(1));
    let garage = world.try_start().await?.garage;
    garage.reap_uploads().await?;
    known.store(&garage, "blocks", body(6, 20)).await?;
    garage.send_queue().await?;
    Ok(())
}

async fn fetch(garage: &Garage, bucket: BucketId, text: &str) -> Body {
    let object = match garage.object(bucket, &key(text)).await {
        Ok(object) => object,
        Err(ModelError::NoSuchKey) => return None,
        Err(error) => panic!("{text}: {error}"),
    };
    let chunks: Vec<Bytes> = garage.read_object(&object, 0..object.meta.size).await.unwrap().map(Result::unwrap).collect().await;
    Some(chunks.concat())
}

/// What must be true once the power is back.
async fn check(world: &World, known: &Known, which: &str) {
    let node = world.try_start().await.unwrap_or_else(|error| panic!("{which}: the node does not start: {error}"));
    let garage = node.garage;
    if let Some(id) = known.node {
        assert_eq!(garage.cluster().node_id(), id, "{which}: the node is another");
    }
    garage.reap_uploads().await.unwrap();
    // A file whose reference was not committed any more is found by the comparison that follows every start.
    garage.queue_uncounted_files().await.unwrap();
    let Some(bucket) = known.bucket else { return };
    let doubtful = known.in_doubt.as_ref();
    let keys: BTreeSet<&str> = known.objects.keys().copied().chain(doubtful.map(|(text, _)| *text)).collect();
    for text in &keys {
        let found = fetch(&garage, bucket, text).await;
        let before = known.objects.get(text).cloned().flatten();
        let happened = doubtful.is_some_and(|(key, body)| key == text && *body == found);
        let length = |body: &Body| body.as_ref().map(Vec::len);
        assert!(found == before || happened, "{which}: {text} has {:?} bytes, not {:?}", length(&found), length(&before));
    }
    // The node works as before, and releases all of it.
    for text in keys {
        let again = garage.put_object(put(bucket, text), Box::new(InMemory::new(body(9, 100)))).await;
        assert!(again.is_ok(), "{which}: {text}: {again:?}");
        garage.delete_object(bucket, &key(text), Preconditions::default()).await.unwrap();
    }
    garage.abort_uploads_begun_until(bucket, garage.clock().now()).await.unwrap();
    for _round in 0..3 {
        while garage.send_queue().await.unwrap() > 0 {}
        world.clock.advance_millis(3_600_000);
        garage.look_at_fresh_references().await.unwrap();
        while garage.resync_due().await.unwrap() > 0 {}
    }
    let counts = garage.bucket_counts(bucket).await.unwrap();
    assert_eq!((counts.objects, counts.bytes, counts.uploads), (0, 0, 0), "{which}");
    let left: Vec<_> = world.disk.files().into_iter().filter(|path| path.starts_with("/data") && is_block(path)).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{which}: blocks that nothing needs");
}

fn is_block(path: &std::path::Path) -> bool {
    path.components().count() == 5
}

#[tokio::test(start_paused = true)]
async fn the_power_may_go_at_any_step() {
    let whole = World::new(1);
    let mut known = Known::default();
    story(&whole, &mut known).await.unwrap();
    let steps = whole.power.steps();
    assert!(steps > 100, "{steps} steps");
    for cut in 0..steps {
        let world = World::new(1);
        let mut known = Known::default();
        world.power.cut_after(cut);
        if let Err(error) = story(&world, &mut known).await {
            assert!(!world.power.is_on(), "cut at step {cut}: {error}");
        }
        // In turn all is lost that may be, and what chance will have it.
        if cut % 2 == 0 {
            world.cut_power();
            world.power.restore();
        } else {
            world.end_power_cut(&SeededRandom::new(cut));
        }
        check(&world, &known, &format!("cut at step {cut} of {steps}")).await;
    }
}
