//! Stories of listings that take their pages from owners which do not have the same rows.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Stage;

/// Owners are asked for one row more.
const LIMIT: usize = 16;
/// So many keys are deleted, but for their tombstones: a listing goes past them, and so beyond what its shortest page is sure of.
const DELETED: usize = 14;

/// One owner misses every other key, so that its page reaches further than another's. A machine without a role lists by these two: between
/// where their pages end, one of them has keys that neither page has.
pub(super) fn pages_reach_differently_far(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [late, one, other] = stage.shuffled()[..] else { return };
        let reader = stage.roles;
        stage.all_connected().await;
        let (deleted, live) = stage.keys().split_at(DELETED);
        let parity = usize::from(stage.is_drawn(2));
        let (missed, known): (Vec<_>, Vec<_>) = live.iter().enumerate().partition(|(index, _key)| index % 2 == parity);
        for key in known.iter().map(|(_index, key)| *key).chain(deleted) {
            stage.put(stage.some(&[late, one, other]), key).await;
        }
        for key in deleted {
            stage.delete(stage.some(&[late, one, other]), key).await;
        }
        stage.pause(1, 500).await;
        stage.note(&format!("{late} misses every other key"));
        stage.cut_off(late);
        for (_index, key) in missed {
            stage.put(stage.some(&[one, other, reader]), key).await;
        }
        stage.note(&format!("{reader} reaches {late} and {one}, which do not reach each other"));
        stage.cut_only(&[late], &[one, other]);
        stage.cut(reader, other);
        stage.pause(5_000, 10_000).await;
        for _time in 0..2 {
            stage.world.list(&format!("story on {reader}"), stage.machine(reader), LIMIT).await;
        }
        stage.world.cluster.network.open_all_links();
    }
    .boxed()
}
