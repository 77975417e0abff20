//! Stories of what follows from deletions: the release of what was stored.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Stage;
use crate::checks;
use crate::faults::heal;

/// Until references are known to belong to a content that was finished.
const SETTLED_AFTER_MS: i64 = 3_600_000;

/// Only one owner hears of deletions, and the others cannot ask it any more: to them, and to everybody who asks them, the objects are
/// still there, and must be whole.
pub(super) fn one_owner_knows(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let writer = stage.roles;
        for round in 0..2 {
            stage.all_connected().await;
            let [knows, one, other] = stage.shuffled()[..] else { return };
            stage.fill(&[knows, one, other]).await;
            stage.pause(1, 500).await;
            stage.note(&format!("round {round}: {writer} reaches {knows} only"));
            stage.world.cluster.network.block(writer, one);
            stage.world.cluster.network.block(writer, other);
            let deletions: Vec<_> = stage.keys().iter().map(|key| stage.begin_delete(writer, key)).collect();
            stage.pause(200, 2_000).await;
            stage.note(&format!("{knows} reaches nobody"));
            stage.cut_off(knows);
            stage.read_all(&[one, other]).await;
            stage.pause(1, 5_000).await;
            stage.read_all(&[one, other]).await;
            stage.world.cluster.network.open_all_links();
            for deletion in deletions {
                deletion.await.expect("a client does not panic");
            }
        }
    }
    .boxed()
}

/// Deletions reach all owners, who do not reach each other: what follows waits, until nothing of what was deleted is left.
pub(super) fn owners_reach_nobody(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let owners = stage.shuffled();
        let writer = stage.roles;
        stage.fill(&owners).await;
        stage.pause(1, 1_000).await;
        // References are looked at once more some time after they came; later nobody but the queue knows what is to be released.
        stage.world.cluster.machines.iter().for_each(|machine| machine.clock.set_off_by_ms(SETTLED_AFTER_MS));
        stage.pause(60_000, 90_000).await;
        stage.note("owners do not reach each other");
        stage.cut_between(&owners, &owners);
        for key in stage.keys() {
            stage.delete(writer, key).await;
        }
        stage.pause(15_000, 40_000).await;
        heal(&stage.world).await;
        stage.all_connected().await;
        checks::after_deleting_all(&stage.world).await;
    }
    .boxed()
}
