//! Stories of databases that are lost, or put back to what they were.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::MemoryEngine;

use super::Stage;
use crate::cluster::network::Death;

/// What the clocks of those who know of a write are ahead of who does not.
const AHEAD_MS: i64 = 1_800_000;

/// The machine comes back with an empty database.
async fn comes_back_empty(stage: &Stage, number: usize) {
    let machine = stage.machine(number);
    stage.note(&format!("{number} comes back with an empty database"));
    machine.crash(Death::Reset);
    machine.engine.become_copy_of(&MemoryEngine::new());
    machine.restart().await;
}

/// Of the two that know of the last writes, one loses its database while the other is away. What is left is a machine that missed
/// them and one that has nothing: they may not answer, nor take writes, nor may the one rebuild from the other alone.
pub(super) fn lost_while_another_is_away(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [lost, away, stale] = stage.shuffled()[..] else { return };
        stage.fill(&[lost, away, stale]).await;
        stage.note(&format!("{stale} misses what is written"));
        stage.cut_off(stale);
        stage.pause(1, 9_000).await;
        for number in [lost, away] {
            stage.machine(number).clock.set_off_by_ms(AHEAD_MS);
        }
        for key in stage.keys() {
            let through = stage.some(&[lost, away]);
            if stage.is_drawn(3) { stage.delete(through, key).await } else { stage.put(through, key).await }
        }
        stage.pause(1, 3_000).await;
        stage.world.cluster.network.open_all_links();
        stage.note(&format!("{away} is away"));
        stage.cut_off(away);
        stage.machine(lost).clock.set_off_by_ms(0);
        comes_back_empty(&stage, lost).await;
        let reader = stage.reader(&[lost, stale], 300);
        stage.pause(1, 6_000).await;
        for key in stage.keys() {
            if stage.is_drawn(2) {
                stage.put(stage.some(&[lost, stale]), key).await;
            }
        }
        stage.pause(1, 20_000).await;
        stage.note(&format!("{away} is back"));
        stage.world.cluster.network.open_all_links();
        stage.pause(1, 10_000).await;
        stage.read_all(&[lost, away, stale]).await;
        drop(reader);
    }
    .boxed()
}

/// Of five owners of which three know of the last writes, two lose their databases while the third is away. The empty ones must not
/// take each other for witnesses.
pub(super) fn two_are_lost(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [one, two, away, stale, staler] = stage.shuffled()[..] else { return };
        stage.fill(&[one, two, away, stale, staler]).await;
        stage.cut_off(stale);
        stage.cut_off(staler);
        stage.pause(1, 9_000).await;
        stage.fill(&[one, two, away]).await;
        stage.pause(1, 3_000).await;
        stage.world.cluster.network.open_all_links();
        stage.cut_off(away);
        comes_back_empty(&stage, one).await;
        comes_back_empty(&stage, two).await;
        let reader = stage.reader(&[one, two, stale, staler], 300);
        stage.pause(5_000, 30_000).await;
        stage.note(&format!("{away} is back"));
        stage.world.cluster.network.open_all_links();
        stage.pause(1, 10_000).await;
        drop(reader);
    }
    .boxed()
}

/// A machine is put back to a copy of its database that knows neither of a deletion, whose tombstone all have dropped, nor of what was
/// written since.
pub(super) fn restored_from_a_copy(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [old, away, stale] = stage.shuffled()[..] else { return };
        let all = [old, away, stale];
        let machine = stage.machine(old);
        stage.fill(&all).await;
        stage.pause(500, 3_000).await;
        let copy = machine.engine.copy();
        machine.crash(Death::Reset);
        machine.restart().await;
        stage.all_connected().await;
        let (deleted, written) = stage.keys().split_at(stage.keys().len() / 2);
        for key in deleted {
            stage.delete(stage.some(&all), key).await;
        }
        stage.pause(1, 15_000).await;
        stage.cut_off(stale);
        for key in written {
            stage.put(stage.some(&[old, away]), key).await;
        }
        stage.world.cluster.network.open_all_links();
        stage.note(&format!("{old} is put back to an old database while {away} is away"));
        machine.crash(Death::Reset);
        machine.engine.become_copy_of(&copy);
        let is_away = stage.is_drawn(2);
        if is_away {
            stage.cut_off(away);
        }
        machine.restart().await;
        let reader = stage.reader(&all, 200);
        stage.pause(3_000, 20_000).await;
        stage.world.cluster.network.open_all_links();
        stage.pause(1, 10_000).await;
        drop(reader);
    }
    .boxed()
}

/// An owner answers a write, loses its database and is rebuilt before a second owner hears of the write: with the answer of the lost
/// database that would be a quorum, and one copy.
pub(super) fn lost_before_the_second_copy(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [lost, slow, third] = stage.shuffled()[..] else { return };
        let writer = stage.roles;
        // The writer has no copy of the bucket's row, and learns it while it can.
        stage.fill(&[writer]).await;
        stage.pause(1, 3_000).await;
        stage.note(&format!("what {writer} writes reaches {lost} at once, {slow} late and {third} not at all"));
        stage.world.cluster.network.block(writer, slow);
        stage.cut(writer, third);
        let writes: Vec<_> = stage.keys().iter().map(|key| stage.begin_put(writer, key)).collect();
        stage.pause(50, 500).await;
        comes_back_empty(&stage, lost).await;
        stage.pause(2_000, 8_000).await;
        stage.note("what was written arrives");
        stage.cut_only(&[writer], &[third]);
        for write in writes {
            write.await.expect("a client does not panic");
        }
        stage.pause(1, 300).await;
        stage.note(&format!("{slow} is away"));
        stage.cut_only(&[slow], &[lost, third, writer]);
        let reader = stage.reader(&[lost, third], 200);
        stage.pause(10_000, 40_000).await;
        stage.read_all(&[lost, third]).await;
        stage.world.cluster.network.open_all_links();
        stage.pause(1, 10_000).await;
        drop(reader);
    }
    .boxed()
}
