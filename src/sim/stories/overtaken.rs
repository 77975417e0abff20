//! A story of a write that is overtaken by one that few know of.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::MemoryEngine;
use garage_model::object::IndexShard;
use garage_types::NodeId;

use super::Stage;
use crate::checks;
use crate::cluster::network::Death;
use crate::faults::heal;

/// The clock of who overtakes is ahead of the other writer's.
const AHEAD_MS: i64 = 60_000;
/// Blocks take so long at most to be stored: meanwhile the deletion overtakes.
const DISK_DELAY_MAX: Duration = Duration::from_millis(1_500);

/// While a content is stored, one owner of the index hears of a deletion with a later time, and nobody else does. When the object's row
/// comes, that owner ignores it and counts as one that has it: the write is acknowledged. Then the owner loses its database for good, and
/// the deletion with it: the object must be whole. Or it comes back with what it knows: the content must be released.
pub(super) fn who_overtakes_is_lost(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [knows, other, third] = index_owners(&stage);
        let (deleter, writer) = (stage.roles, stage.roles + 1);
        stage.all_connected().await;
        stage.note(&format!("only {knows} hears of deletions through {deleter}; {writer} does not reach {third}"));
        stage.cut_between(&[knows, deleter], &[other, third]);
        stage.cut(writer, third);
        stage.machine(deleter).clock.set_off_by_ms(AHEAD_MS);
        let slow = (0..stage.roles).filter(|number| ![knows, other, third].contains(number));
        slow.for_each(|number| stage.machine(number).set_disk_delay_max(DISK_DELAY_MAX));
        let puts: Vec<_> = stage.keys().iter().map(|key| stage.begin_put(writer, key)).collect();
        stage.pause(300, 1_200).await;
        let deletions: Vec<_> = stage.keys().iter().map(|key| stage.begin_delete(deleter, key)).collect();
        for put in puts {
            put.await.expect("a client does not panic");
        }
        stage.pause(500, 5_000).await;
        if stage.is_drawn(4) {
            stage.note(&format!("{knows} reaches the others again"));
        } else {
            stage.note(&format!("{knows} and {deleter} lose what they know for good"));
            stage.machine(deleter).crash(Death::Reset);
            stage.machine(knows).crash(Death::Reset);
            stage.machine(knows).engine.become_copy_of(&MemoryEngine::new());
        }
        heal(&stage.world).await;
        for deletion in deletions {
            deletion.await.expect("a client does not panic");
        }
        stage.all_connected().await;
        stage.read_all(&[other, third]).await;
        checks::after_quiet(&stage.world, crate::scenario::ABILITIES).await;
        checks::after_deleting_all(&stage.world).await;
    }
    .boxed()
}

/// The numbers of the machines that own the bucket's index, in an order drawn from the seed.
fn index_owners(stage: &Stage) -> [usize; 3] {
    let placement = IndexShard { bucket: stage.world.bucket, shard: 0 }.placement();
    let layout = stage.machine(0).node().expect("it runs").layout.current();
    let owners: Vec<NodeId> = layout.read_nodes(placement).to_vec();
    let numbers: Vec<usize> = stage.shuffled().into_iter().filter(|number| owners.contains(&stage.id(*number))).collect();
    numbers.try_into().expect("three owners")
}
