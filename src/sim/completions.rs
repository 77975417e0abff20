//! Completions where several owners have to agree: what one that is given up leaves behind, and what two at once answer.

use std::collections::BTreeMap;
use std::time::Duration;

use garage_model::bucket::Quotas;
use garage_model::complete::{ListedPart, ListedWhole};
use garage_model::multipart::{CreateUpload, PutPart, UploadName};
use garage_model::pipeline::InMemory;
use garage_model::put::Preconditions;
use garage_model::upload_end::CompleteUpload;
use garage_model::version::{Piece, VersionContent, VersionRow, VersionTable};
use garage_model::{Garage, ModelError};
use garage_rpc::quorum::ConsistencyMode;
use garage_types::{BucketId, ObjectKey};

use crate::checks::rows;
use crate::cluster::Cluster;
use crate::cluster::machine::{Machine, Setup, Sizes};
use crate::cluster::network::Death;

const OWNERS: Setup = Setup {
    replication_factor: 3,
    consistency: ConsistencyMode::Consistent,
    data_durability: garage_block::Durability::Synced,
    metadata_durability: garage_db::Durability::Synced,
    sizes: Sizes::USUAL,
};

/// Lists of parts that stand on a machine.
async fn lists(machine: &Machine) -> usize {
    let stands = |row: &VersionRow| match &row.content {
        VersionContent::Segment(segment) => segment.pieces.iter().any(|piece| matches!(piece, Piece::Part { .. })),
        VersionContent::Deleted => false,
    };
    rows::<VersionTable>(machine).await.iter().filter(|row| stands(row)).count()
}

/// An open upload with one part, and the request that completes it.
async fn upload_of_one_part(garage: &Garage, bucket: BucketId, key: &str) -> CompleteUpload {
    let key = ObjectKey::parse(key).unwrap();
    let create = CreateUpload { bucket, key: key.clone(), headers: BTreeMap::new(), checksum: None, owner: None };
    let upload = UploadName { bucket, key, id: garage.create_multipart(create).await.unwrap() };
    let put = PutPart { upload: upload.clone(), number: 1, checksum: None };
    let etag = garage.upload_part(put, Box::new(InMemory::new(vec![7; 300]))).await.unwrap().etag;
    let parts = vec![ListedPart { number: 1, etag, checksums: Vec::new() }];
    let whole = ListedWhole { parts, ..ListedWhole::default() };
    CompleteUpload { upload, whole, preconditions: Preconditions::default() }
}

/// An owner that has not heard that a completion was given up may still carry it out, and then its object needs the list.
#[tokio::test(start_paused = true)]
async fn the_list_of_a_completion_that_was_given_up_stays_while_an_owner_may_not_have_heard() {
    let cluster = Cluster::start(1, 3, 3, OWNERS).await;
    let [one, other, away] = &cluster.machines[..] else { panic!("three machines") };
    let garage = one.garage().unwrap();
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let complete = upload_of_one_part(&garage, bucket, "k").await;
    // What makes it give up once it holds its claim.
    garage.set_quotas(bucket, Quotas { size_bytes_max: Some(1), objects_max: None }).await.unwrap();

    away.crash(Death::Reset);
    cluster.network.open_all_links();
    let given_up = garage.complete_multipart(complete.clone()).await;
    assert!(matches!(given_up, Err(ModelError::QuotaBytes)), "{given_up:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((lists(one).await, lists(other).await), (1, 1), "one owner is away");

    away.restart().await;
    cluster.until("all machines are connected", Cluster::is_connected).await;
    let given_up = garage.complete_multipart(complete).await;
    assert!(matches!(given_up, Err(ModelError::QuotaBytes)), "{given_up:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((lists(one).await, lists(other).await), (1, 1), "all owners refuse the second one");
}

/// Completes each of many uploads twice, a little apart, through these two machines.
async fn both_answer_the_same(through: [usize; 2], delay_max: Duration) {
    let cluster = Cluster::start(2, 3, 3, OWNERS).await;
    let [one, other] = through.map(|number| cluster.machines[number].garage().unwrap());
    let bucket = one.create_bucket("pictures").await.unwrap();
    cluster.network.set_delay_max(delay_max);
    for round in 0..200 {
        let complete = upload_of_one_part(&one, bucket, &format!("k{round}")).await;
        let repeat = async {
            tokio::time::sleep(delay_max.mul_f64(f64::from(round % 20) / 5.0)).await;
            other.complete_multipart(complete.clone()).await
        };
        let (first, repeated) = futures_util::join!(one.complete_multipart(complete.clone()), repeat);
        let [first, repeated] =
            [first, repeated].map(|done| done.unwrap_or_else(|error| panic!("through {through:?}, round {round}: {error}")));
        assert_eq!(repeated, first, "through {through:?}, round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_repeated_while_the_first_goes_on_answers_the_same_through_whichever_owner() {
    for through in [[0, 0], [0, 1], [1, 2]] {
        both_answer_the_same(through, Duration::from_millis(20)).await;
    }
}
