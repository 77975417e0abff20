//! A cluster in which hardly anybody does anything: what its nodes say to each other all the same.

use std::time::Duration;

use garage_model::object::ObjectTable;

use crate::blocks_world::store;
use crate::checks::rows;
use crate::cluster::Cluster;
use crate::scenario::setup_of;

/// Until what follows a start and a first layout is over.
const QUIET: Duration = Duration::from_secs(5 * 60);
const COUNTED_MINUTES: u64 = 10;
/// Each node asks ten peers on two connections every three seconds whether they are there, and compares layouts and rows with a few.
const CALLS_A_MINUTE_MAX: u64 = 420;

/// Calls a minute that each node makes on average in an idle cluster of so many.
async fn calls_of_each(machines: usize) -> u64 {
    let cluster = Cluster::start(machines as u64, machines, machines, setup_of(3, None)).await;
    tokio::time::sleep(QUIET).await;
    let calls = |cluster: &Cluster| -> u64 {
        cluster.machines.iter().map(|machine| machine.node().expect("it runs").mesh.calls_made()).sum()
    };
    let before = calls(&cluster);
    tokio::time::sleep(Duration::from_secs(COUNTED_MINUTES * 60)).await;
    (calls(&cluster) - before) / COUNTED_MINUTES / machines as u64
}

#[tokio::test(start_paused = true)]
async fn what_an_idle_node_says_does_not_grow_with_the_cluster() {
    for machines in sizes() {
        let calls = calls_of_each(machines).await;
        println!("{machines} idle nodes: {calls} calls a minute each");
        assert!(calls <= CALLS_A_MINUTE_MAX, "{machines} nodes: {calls} calls a minute each");
    }
}

/// Longer than a node waits before it compares rows with one that did not take a write, and shorter than until it does so anyway.
const BROUGHT: Duration = Duration::from_secs(3 * 60);

#[tokio::test(start_paused = true)]
async fn what_one_node_could_not_store_is_brought_to_it_though_nobody_was_cut_off() {
    let cluster = Cluster::start(1, 3, 3, setup_of(3, None)).await;
    let [writer, _other, failing] = &cluster.machines[..] else { panic!("three machines") };
    let garage = writer.garage().expect("it runs");
    let bucket = garage.create_bucket("pictures").await.expect("the bucket is created");
    tokio::time::sleep(QUIET).await;
    let arrivals = || writer.node().expect("it runs").mesh.arrivals();
    let before = arrivals();
    failing.engine.fail_next_commits(u32::MAX);
    store(&garage, bucket, "a", b"inline".to_vec()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    failing.engine.fail_next_commits(0);
    assert!(rows::<ObjectTable>(failing).await.is_empty(), "its database takes nothing");
    tokio::time::sleep(BROUGHT).await;
    assert_eq!(rows::<ObjectTable>(failing).await.len(), 1);
    assert_eq!(arrivals(), before, "nobody has come up");
}

/// IDLE_NODES: another size, for figures.
fn sizes() -> Vec<usize> {
    match std::env::var("IDLE_NODES") {
        Ok(number) => vec![number.parse().expect("a number of nodes")],
        Err(_) => vec![11, 22],
    }
}
