//! How many round trips between places an operation takes: three machines in three zones, 100 ms apart and back, virtual time.
//!
//! The client is beside the machine it asks. Connections are there already, and nothing but the network takes time, so that the time
//! of an operation is its round trips. The figures are those of `doc/design.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use garage_http::sigv4::signer::Signer;
use garage_model::Garage;
use garage_model::complete::{ListedPart, ListedWhole};
use garage_model::digest::ChecksumAlgorithm;
use garage_model::get::Object;
use garage_model::key::Permissions;
use garage_model::list::ListQuery;
use garage_model::multipart::{CreateUpload, PutPart, UploadName};
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::upload_end::CompleteUpload;
use garage_rpc::layout::NodeRole;
use garage_rpc::quorum::ConsistencyMode;
use garage_types::random::SeededRandom;
use garage_types::{BucketId, ObjectKey, Random};
use hyper::Method;
use tokio::time::Instant;

use crate::cluster::machine::{Setup, Sizes};
use crate::cluster::network::{CLIENTS_FROM, Pace};
use crate::cluster::{Cluster, frontend};
use crate::s3::client::{Client, Request};

const ROUND_TRIP: Duration = Duration::from_millis(100);
const MIB: usize = 1 << 20;

/// Three storage nodes, and a node without capacity that serves requests too.
struct Places {
    cluster: Cluster,
    bucket: BucketId,
    random: SeededRandom,
}

impl Places {
    async fn start(bytes_per_second: Option<u64>) -> Places {
        let setup = Setup {
            replication_factor: 3,
            consistency: ConsistencyMode::Consistent,
            data_durability: garage_block::Durability::Synced,
            metadata_durability: garage_db::Durability::Synced,
            sizes: Sizes::USUAL,
        };
        let cluster = Cluster::start(1, 4, 3, setup).await;
        let layout = cluster.machines[3].node().unwrap().layout;
        let gateway = NodeRole { zone: "zone3".to_owned(), capacity: None, tags: Vec::new() };
        layout.stage_role(cluster.machines[3].id, gateway).await.unwrap();
        layout.apply(2).await.unwrap();
        let bucket = cluster.machines[0].garage().unwrap().create_bucket("places").await.unwrap();
        cluster.network.set_pace(Pace::Exact { one_way: ROUND_TRIP / 2, bytes_per_second });
        // What was under way at the old pace has ended, and latencies are known at the new one.
        tokio::time::sleep(Duration::from_secs(60)).await;
        Places { cluster, bucket, random: SeededRandom::new(2) }
    }

    fn owner(&self) -> Garage {
        self.cluster.machines[0].garage().unwrap()
    }

    fn gateway(&self) -> Garage {
        self.cluster.machines[3].garage().unwrap()
    }

    fn body(&self, length: usize) -> Bytes {
        let mut body = vec![0; length];
        self.random.fill(&mut body);
        body.into()
    }

    async fn put(&self, garage: &Garage, key: &str, body: Bytes) {
        let put = PutObject {
            bucket: self.bucket,
            key: ObjectKey::parse(key).unwrap(),
            headers: BTreeMap::from([("x-amz-meta-note".to_owned(), hex::encode(self.body(150)))]),
            checksum: ChecksumAlgorithm::Crc64Nvme,
            owner: None,
            preconditions: Preconditions::default(),
        };
        garage.put_object(put, Box::new(InMemory::new(body))).await.unwrap();
    }

    async fn head(&self, garage: &Garage, key: &str) -> Object {
        garage.object(self.bucket, &ObjectKey::parse(key).unwrap()).await.unwrap()
    }

    async fn first_bytes(&self, garage: &Garage, key: &str) -> Bytes {
        let object = self.head(garage, key).await;
        let mut stream = garage.read_object(&object, 0..object.meta.size).await.unwrap();
        stream.next().await.unwrap().unwrap()
    }

    async fn delete(&self, garage: &Garage, key: &str) {
        garage.delete_object(self.bucket, &ObjectKey::parse(key).unwrap(), Preconditions::default()).await.unwrap();
    }

    async fn list(&self, garage: &Garage) -> usize {
        let query = ListQuery { limit: 1000, ..ListQuery::default() };
        garage.list_objects(self.bucket, &query).await.unwrap().items.len()
    }
}

/// How many round trips something takes. Afterwards the cluster has come to rest.
async fn round_trips<T>(work: impl Future<Output = T>) -> f64 {
    let began = Instant::now();
    work.await;
    let taken = began.elapsed();
    tokio::time::sleep(Duration::from_secs(60)).await;
    (taken.as_secs_f64() / ROUND_TRIP.as_secs_f64() * 10.0).round() / 10.0
}

fn in_virtual_time<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

#[test]
fn small_operations_take_one_round_trip() {
    in_virtual_time(async {
        let places = Places::start(None).await;
        // A node that owns no copy hears of a collection of tombstones when an owner refuses its next write: that costs two more, once.
        for (name, node, after_collection) in [("an owner", places.owner(), 1.0), ("a gateway", places.gateway(), 3.0)] {
            let body = places.body(3072);
            let put = || places.put(&node, "small", body.clone());
            assert_eq!(round_trips(put()).await, after_collection, "PutObject after a collection through {name}");
            assert_eq!(round_trips(put()).await, 1.0, "PutObject through {name}");
            assert_eq!(round_trips(places.head(&node, "small")).await, 1.0, "HeadObject through {name}");
            assert_eq!(round_trips(places.first_bytes(&node, "small")).await, 1.0, "GetObject through {name}");
            assert_eq!(round_trips(places.list(&node)).await, 1.0, "ListObjectsV2 through {name}");
            assert_eq!(round_trips(places.delete(&node, "small")).await, 1.0, "DeleteObject through {name}");
        }
    });
}

#[test]
fn a_page_of_a_thousand_keys_takes_one_round_trip_however_long_they_are() {
    in_virtual_time(async {
        let places = Places::start(None).await;
        let owner = places.owner();
        // The longer keys, written later, are listed first.
        for folder in ["photos/2026/summer".to_owned(), format!("archive/{}", "of a long journey/".repeat(20))] {
            for number in 0..1001 {
                places.put(&owner, &format!("{folder}/{number:05}.jpeg"), Bytes::from_static(b"small")).await;
            }
            assert_eq!(places.list(&owner).await, 1000);
            for (name, node) in [("an owner", owner.clone()), ("a gateway", places.gateway())] {
                assert_eq!(round_trips(places.list(&node)).await, 1.0, "ListObjectsV2 of {folder} through {name}");
            }
        }
    });
}

#[test]
fn large_objects_take_few_round_trips() {
    in_virtual_time(async {
        let places = Places::start(None).await;
        let (owner, gateway) = (places.owner(), places.gateway());
        // What a node without copies pays for not having heard of a collection, which happens between any two of these.
        for (name, node, first_byte, unheard) in [("an owner", &owner, 1.0, 0.0), ("a gateway", &gateway, 2.0, 2.0)] {
            // Eight blocks at a time, and the row at the end.
            for (key, size, wanted) in [("one", 1, 2.0), ("ten", 10, 3.0), ("many", 64, 9.0)] {
                let taken = round_trips(places.put(node, key, places.body(size * MIB))).await;
                assert!(taken == wanted || taken == wanted + unheard, "PutObject of {size} MiB through {name}: {taken}");
            }
            assert_eq!(round_trips(places.first_bytes(node, "one")).await, first_byte, "GetObject of 1 MiB through {name}");
            assert_eq!(round_trips(places.first_bytes(node, "ten")).await, first_byte, "GetObject of 10 MiB through {name}");
        }
    });
}

#[test]
fn an_upload_in_parts_ends_in_three_round_trips() {
    in_virtual_time(async {
        let places = Places::start(None).await;
        let owner = places.owner();
        let create = || {
            let (bucket, key) = (places.bucket, ObjectKey::parse("in parts").unwrap());
            owner.create_multipart(CreateUpload { bucket, key, headers: BTreeMap::new(), checksum: None, owner: None })
        };
        let name = |id| UploadName { bucket: places.bucket, key: ObjectKey::parse("in parts").unwrap(), id };
        let put_part = |upload: &UploadName, number| {
            let put = PutPart { upload: upload.clone(), number, checksum: None };
            owner.upload_part(put, Box::new(InMemory::new(places.body(5 * MIB))))
        };
        assert_eq!(round_trips(create()).await, 1.0, "CreateMultipartUpload");
        let upload = name(create().await.unwrap());
        // Whether there is the upload; the blocks and what is known of the part; then the part counts.
        assert_eq!(round_trips(put_part(&upload, 1)).await, 3.0, "UploadPart");
        let mut parts = Vec::new();
        for number in 1..=3 {
            let written = put_part(&upload, number).await.unwrap();
            parts.push(ListedPart { number, etag: written.etag, checksums: Vec::new() });
        }
        let whole = ListedWhole { parts, ..ListedWhole::default() };
        let complete = CompleteUpload { upload, whole, preconditions: Preconditions::default() };
        // What there is; the list and the claim; the object.
        let taken = round_trips(async { owner.complete_multipart(complete).await.unwrap() }).await;
        assert_eq!(taken, 3.0, "CompleteMultipartUpload");
        assert_eq!(places.head(&owner, "in parts").await.meta.size, 15 * MIB as u64);
        let upload = name(create().await.unwrap());
        assert_eq!(round_trips(async { owner.abort_multipart(&upload).await.unwrap() }).await, 3.0, "AbortMultipartUpload");
    });
}

#[test]
fn a_large_upload_is_as_fast_as_the_link() {
    in_virtual_time(async {
        const BYTES_PER_SECOND: u64 = 25 << 20;
        let places = Places::start(Some(BYTES_PER_SECOND)).await;
        let length = 64 * MIB;
        // What frames and messages add is less than one in two hundred.
        let of_link = length as f64 * 1.005 / BYTES_PER_SECOND as f64 / ROUND_TRIP.as_secs_f64();
        let taken = round_trips(places.put(&places.owner(), "many", places.body(length))).await;
        assert!(taken <= of_link + 3.0, "{taken} round trips, where the link alone takes {of_link}");
    });
}

#[test]
fn the_frontend_adds_no_round_trip() {
    in_virtual_time(async {
        let places = Places::start(None).await;
        let key = places.owner().create_key("client", None).await.unwrap();
        places.owner().set_permissions(&key.id, places.bucket, Permissions::ALL).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let signer = Signer {
            key_id: key.id.as_str().to_owned(),
            secret: key.state.secret.clone(),
            region: frontend::REGION.to_owned(),
            service: "s3".to_owned(),
        };
        let client = Client { network: places.cluster.network.clone(), place: CLIENTS_FROM, signer };
        let send = async |request| {
            let reply = client.send(&places.cluster.machines[0], request, &places.random).await.unwrap();
            assert!(reply.status.is_success() && reply.whole, "{}", reply.shown());
        };
        let of = |method, length| Request::new(method, "/places/photo".to_owned()).body(places.body(length));
        assert_eq!(round_trips(send(of(Method::PUT, 3072))).await, 1.0, "PutObject");
        assert_eq!(round_trips(send(of(Method::HEAD, 0))).await, 1.0, "HeadObject");
        assert_eq!(round_trips(send(of(Method::GET, 0))).await, 1.0, "GetObject");
        let list = Request::new(Method::GET, "/places".to_owned()).query("list-type=2".to_owned());
        assert_eq!(round_trips(send(list)).await, 1.0, "ListObjectsV2");
        assert_eq!(round_trips(send(of(Method::DELETE, 0))).await, 1.0, "DeleteObject");
        assert_eq!(round_trips(send(of(Method::PUT, MIB))).await, 2.0, "PutObject of 1 MiB");
        assert_eq!(round_trips(send(of(Method::GET, 0))).await, 1.0, "GetObject of 1 MiB");
    });
}
