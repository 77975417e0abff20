//! Clients that ask for objects and then read nothing: others are served all the same.

use futures_util::StreamExt;
use futures_util::future::join_all;
use garage_model::ModelError;
use garage_model::get::ByteStream;
use garage_types::ObjectKey;
use garage_types::planted::{Bug, plant};

use crate::blocks_world::{Cluster, body, store, until};

/// More than the calls that a node makes to another at once.
const READERS: usize = 60;

/// Readers of one object on a node that has none of its blocks take the first bytes and no more. Then somebody else reads it.
async fn read_beside_idle_readers() -> Result<Vec<u8>, ModelError> {
    let cluster = Cluster::of(2, 2).await;
    cluster.lay_out(&[0, 1]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await?;
    let (content, blocks) = body(1, 8);
    store(cluster.garage(0), bucket, "a", content.clone()).await;
    for block in &blocks {
        until(async || cluster.holders(*block).await == [0, 1]).await;
        cluster.garage(1).local().blocks.blocks.remove(*block).await.expect("the disk works");
    }
    let reader = cluster.garage(1);
    let object = reader.object(bucket, &ObjectKey::parse("a").expect("a key")).await?;
    let open = async || -> Result<ByteStream, ModelError> {
        let mut stream = reader.read_object(&object, 0..object.meta.size).await?;
        // The second wait begins what is fetched ahead of it.
        for _taken in 0..2 {
            stream.next().await.transpose()?;
        }
        Ok(stream)
    };
    let idle: Vec<ByteStream> = join_all((0..READERS).map(|_| open())).await.into_iter().collect::<Result<_, _>>()?;
    let mut whole = Vec::new();
    let mut stream = reader.read_object(&object, 0..object.meta.size).await?;
    while let Some(bytes) = stream.next().await.transpose()? {
        whole.extend_from_slice(&bytes);
    }
    drop(idle);
    assert_eq!(whole, content);
    Ok(whole)
}

#[tokio::test(start_paused = true)]
async fn readers_that_take_nothing_stop_nobody_else() {
    read_beside_idle_readers().await.expect("served");
}

#[tokio::test(start_paused = true)]
async fn readers_whose_fetches_are_left_unpolled_stop_everybody() {
    plant(Some(Bug::PlacesHeldUnpolled));
    let outcome = read_beside_idle_readers().await.map(|body| body.len());
    plant(None);
    assert!(matches!(outcome, Err(ModelError::BlockUnavailable { .. })), "{outcome:?}");
}
