//! Names of buckets as one node knows them, when others know better.

use std::sync::Arc;
use std::time::Duration;

use garage_model::Garage;
use garage_model::alias::{AliasRow, AliasScope, AliasTable};
use garage_model::bucket::{BucketRow, BucketTable};
use garage_table::Schema;
use garage_table::wire::{Entry, Mode, Verdict, Write};
use garage_types::crdt::{Deletable, Lww};
use garage_types::planted::{Bug, plant};

use crate::cluster::Cluster;
use crate::cluster::machine::Machine;
use crate::scenario::setup_of;

/// Stores a row on one machine alone, as if it had come there before the others.
async fn store(garage: &Garage, entry: Entry) {
    let write = Write { layout: garage.cluster().layout().version(), entries: vec![entry] };
    assert_eq!(garage.local().tables.write(write).await.unwrap(), Verdict::Won);
}

/// One machine has heard that a bucket was deleted, but not that its name is another's by now. Returns whether it finds the other.
async fn finds_the_bucket_that_has_the_name_now(bug: Option<Bug>) -> bool {
    let cluster = Cluster::start(5, 3, 3, setup_of(3, None)).await;
    let garage = |machine: &Arc<Machine>| machine.garage().expect("it runs");
    let [one, two, behind] = [0, 1, 2].map(|number| garage(&cluster.machines[number]));
    let old = one.create_bucket("pictures").await.unwrap();
    let new = one.create_bucket("other").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(behind.resolve_bucket(None, "pictures").await.unwrap().id, old);
    let later = one.clock().now().plus_millis(1_000);
    let bucket = Lww::at(later, Some(new));
    let row = AliasRow { scope: AliasScope::Global, name: "pictures".to_owned(), bucket };
    for knows in [&one, &two] {
        store(knows, AliasTable::entry(&row, Mode::Replicate)).await;
    }
    store(&behind, BucketTable::entry(&BucketRow { id: old, state: Deletable::Deleted }, Mode::Replicate)).await;
    plant(bug);
    let found = behind.resolve_bucket(None, "pictures").await;
    plant(None);
    found.is_ok_and(|found| found.id == new)
}

#[tokio::test(start_paused = true)]
async fn a_name_that_leads_to_a_deleted_bucket_is_asked_of_the_others() {
    assert!(finds_the_bucket_that_has_the_name_now(None).await);
    assert!(!finds_the_bucket_that_has_the_name_now(Some(Bug::StaleNameRefused)).await, "the planted bug is not noticed");
}
