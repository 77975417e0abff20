use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use garage_types::NodeId;
use tokio::time::{Instant, sleep};

use super::{NodeReply, read_from, write_to_sets};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("down")]
struct Down;

type Reply = Result<u8, Down>;

const HEDGE: Duration = Duration::from_millis(100);

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn nodes(ids: &[u8]) -> Vec<NodeId> {
    ids.iter().map(|n| node(*n)).collect()
}

fn number(node: NodeId) -> u8 {
    node.as_bytes()[0]
}

fn no_rest(_rest: BoxFuture<'static, ()>) {
    panic!("nothing should be left to do");
}

fn repliers(replies: &[NodeReply<u8>]) -> Vec<u8> {
    replies.iter().map(|reply| number(reply.node)).collect()
}

/// Node n answers after n seconds; 0 fails at once.
async fn slowly(node: NodeId) -> Reply {
    let n = number(node);
    if n == 0 {
        return Err(Down);
    }
    sleep(Duration::from_secs(u64::from(n))).await;
    Ok(n)
}

#[tokio::test]
async fn one_node_is_called_directly() {
    let replies = write_to_sets(&[nodes(&[1])], 1, no_rest, |_| ready(Reply::Ok(7))).await.unwrap();
    assert_eq!(replies, [NodeReply { node: node(1), reply: 7 }]);
    let error = read_from(&nodes(&[1]), 1, HEDGE, |_| ready(Reply::Err(Down))).await.unwrap_err();
    assert_eq!((error.needed, error.reached, error.of, error.errors[0].node), (1, 0, 1, node(1)));
}

#[tokio::test(start_paused = true)]
async fn a_write_returns_at_its_quorum_and_the_rest_goes_on_behind() {
    let done = Arc::new(AtomicUsize::new(0));
    let rest = Mutex::new(None);
    let start = Instant::now();
    let call = |node| {
        let done = done.clone();
        async move {
            let reply = slowly(node).await;
            done.fetch_add(1, Ordering::SeqCst);
            reply
        }
    };
    let replies = write_to_sets(&[nodes(&[1, 2, 9])], 2, |future| *rest.lock().unwrap() = Some(future), call).await.unwrap();
    assert_eq!(repliers(&replies), [1, 2]);
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!(done.load(Ordering::SeqCst), 2);
    rest.into_inner().unwrap().expect("node 9 has not answered").await;
    assert_eq!(done.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_write_to_two_versions_waits_for_both_and_calls_shared_nodes_once() {
    let called = Mutex::new(Vec::new());
    let start = Instant::now();
    let call = |node| {
        called.lock().unwrap().push(number(node));
        slowly(node)
    };
    let sets = [nodes(&[1, 2, 3]), nodes(&[3, 4, 5])];
    let replies = write_to_sets(&sets, 2, drop, call).await.unwrap();
    assert_eq!(repliers(&replies), [1, 2, 3, 4]);
    assert_eq!(start.elapsed().as_secs(), 4);
    assert_eq!(*called.lock().unwrap(), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_write_fails_as_soon_as_it_cannot_succeed() {
    let start = Instant::now();
    let call = |node: NodeId| async move { if number(node) < 3 { Err(Down) } else { slowly(node).await } };
    let error = write_to_sets(&[nodes(&[1, 2, 3])], 2, no_rest, call).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 0, "node 3 could not have saved it");
    assert_eq!((error.needed, error.reached, error.of, error.errors.len()), (2, 0, 3, 2));
    let text = error.to_string();
    assert!(text.starts_with("0 of 3 nodes answered, 2 are needed; node 0202"), "{text}");
}

#[tokio::test]
async fn nothing_is_called_where_no_quorum_is_possible() {
    let call = |_| -> std::future::Ready<Reply> { panic!("no node should be called") };
    assert!(write_to_sets(&[], 1, no_rest, call).await.is_err());
    assert!(write_to_sets(&[nodes(&[1])], 2, no_rest, call).await.is_err());
    assert!(read_from(&nodes(&[1]), 2, HEDGE, call).await.is_err());
    assert!(read_from(&[], 1, HEDGE, call).await.is_err());
}

#[tokio::test]
async fn a_read_leaves_the_farther_nodes_alone() {
    let asked = Mutex::new(Vec::new());
    let call = |node| {
        asked.lock().unwrap().push(number(node));
        ready(Reply::Ok(0))
    };
    let replies = read_from(&nodes(&[1, 2, 3]), 2, HEDGE, call).await.unwrap();
    assert_eq!(replies.len(), 2);
    assert_eq!(*asked.lock().unwrap(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_read_turns_to_the_next_node_when_one_is_late() {
    let start = Instant::now();
    let call = |node: NodeId| async move {
        match number(node) {
            1 => pending::<Reply>().await,
            n => Ok(n),
        }
    };
    let replies = read_from(&nodes(&[1, 2, 3]), 2, HEDGE, call).await.unwrap();
    assert_eq!(repliers(&replies), [2, 3]);
    assert_eq!(start.elapsed(), HEDGE);
}

#[tokio::test(start_paused = true)]
async fn a_read_turns_to_the_next_node_at_once_when_one_fails() {
    let start = Instant::now();
    let replies = read_from(&nodes(&[0, 0, 4]), 1, Duration::from_secs(60), slowly).await.unwrap();
    assert_eq!(repliers(&replies), [4]);
    assert_eq!(start.elapsed().as_secs(), 4);
    let error = read_from(&nodes(&[0, 0, 4]), 2, HEDGE, slowly).await.unwrap_err();
    assert_eq!((error.reached, error.of, error.errors.len()), (0, 3, 2));
}
