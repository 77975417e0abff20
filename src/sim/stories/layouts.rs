//! Stories of layouts that change while clients read and write.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use super::Stage;

/// Two of three owners are replaced at once, so that two new owners are as many as a read asks.
pub(super) fn two_owners_are_replaced(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [stays, one, other] = stage.shuffled()[..] else { return };
        let all: Vec<usize> = (0..stage.world.cluster.machines.len()).collect();
        stage.fill(&all).await;
        let readers = [stage.reader(&all, 100), stage.reader(&all, 100)];
        stage.pause(1, 500).await;
        let number = stage.change_layout(stage.some(&all), &[one, other], &[stage.roles, stage.roles + 1]).await;
        for _time in 0..3 {
            stage.pause(1, 400).await;
            let key = stage.some_key();
            if stage.is_drawn(3) { stage.delete(stage.some(&all), key).await } else { stage.put(stage.some(&all), key).await }
        }
        stage.settled(number).await;
        stage.pause(1, 3_000).await;
        drop(readers);
        stage.note(&format!("{stays} stayed"));
        stage.read_all(&all).await;
    }
    .boxed()
}

/// New owners reach only one of the old ones, which missed the last writes; all hear of each other through a machine without a role.
/// Then the stale one learns what it missed, at first while the new ones do not reach it any more. They must not be asked before they
/// have learned it as well.
pub(super) fn one_stale_source(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let mut owners: Vec<usize> = (0..stage.roles).collect();
        owners.sort_by_key(|number| stage.id(*number));
        let mut others: Vec<usize> = (stage.roles..stage.world.cluster.machines.len()).collect();
        others.sort_by_key(|number| stage.id(*number));
        // Rows are compared with machines in the order of their ids: the stale one hears of its gap last.
        let ([stale, one, last], [new, newer, between]) = (&owners[..], &others[..]) else { return };
        let (stale, one) = if stage.is_drawn(2) { (*stale, *one) } else { (*one, *stale) };
        let (last, new, newer, between) = (*last, *new, *newer, *between);
        stage.fill(&owners).await;
        stage.pause(1, 1_000).await;
        stage.note(&format!("{stale} misses what {one} and {last} have"));
        stage.cut(stale, one);
        stage.cut(stale, last);
        stage.pause(8_000, 10_000).await;
        stage.fill(&[one, last]).await;
        for old in [one, last] {
            stage.cut(new, old);
            stage.cut(newer, old);
        }
        stage.pause(8_000, 10_000).await;
        stage.change_layout(between, &[one, last], &[new, newer]).await;
        let early = stage.reader(&[new, newer], 200);
        stage.pause(15_000, 30_000).await;
        stage.note(&format!("{stale} reaches the others again, and the new ones reach none of them"));
        stage.cut_only(&[new, newer], &owners);
        stage.pause(15_000, 40_000).await;
        drop(early);
        stage.note("the new ones reach the one again");
        stage.cut_only(&[new, newer], &[one, last]);
        let readers: Vec<_> = (0..3).map(|_number| stage.reader(&[new, newer, stale], 40)).collect();
        stage.pause(5_000, 20_000).await;
        stage.note("all reach all");
        stage.world.cluster.network.open_all_links();
        stage.pause(2_000, 10_000).await;
        drop(readers);
    }
    .boxed()
}

/// Until a machine that was cut off is held to be down by its peers, and waited for no more.
const NOTICED_MS: u64 = 15_000;

/// A layout with two new owners waits for one gateway: at first it has not heard of the layout, then it cannot compare its rows. All
/// that is written meanwhile must be known to the old owners, who are asked as long as it waits, and to the new ones, who are asked
/// at once when it is over.
pub(super) fn a_layout_waits_for_one(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [stays, one, other] = stage.shuffled()[..] else { return };
        let [new, newer, waiting, between] = [0, 1, 2, 3].map(|index| stage.roles + index);
        let (old, newcomers) = ([stays, one, other], [new, newer]);
        stage.fill(&old).await;
        stage.note(&format!("{waiting} does not hear of the layout"));
        stage.cut_off(waiting);
        stage.pause(NOTICED_MS, NOTICED_MS + 2_000).await;
        stage.stage_gateway(between, waiting).await;
        let number = stage.change_layout(between, &[one, other], &newcomers).await;
        stage.pause(5_000, 15_000).await;
        stage.note(&format!("{stays} is cut off"));
        stage.cut_off(stays);
        for key in stage.keys() {
            stage.put(stage.some(&[one, other, new, newer, between]), key).await;
            stage.get(stage.some(&[one, other]), key).await;
        }
        stage.note(&format!("{waiting} hears of the layout, but reaches no old owner"));
        stage.cut_only(&[waiting], &old);
        stage.synced(between, &[stays, one, other, new, newer], number).await;
        stage.pause(NOTICED_MS, NOTICED_MS + 5_000).await;
        stage.note("new and old owners do not reach each other");
        stage.cut_only(&[new, newer, waiting], &old);
        stage.fill(&[between]).await;
        stage.note(&format!("{waiting} reaches the old owners"));
        stage.cut_only(&newcomers, &old);
        let reader = stage.reader(&newcomers, 200);
        stage.synced(between, &[waiting], number).await;
        stage.pause(1_000, 10_000).await;
        stage.read_all(&newcomers).await;
        drop(reader);
    }
    .boxed()
}

/// What was begun under one layout, and the number of the one that was applied meanwhile.
struct Overtaken {
    deletions: Vec<JoinHandle<()>>,
    number: u64,
}

/// Deletions of all keys are held up on their way from `writer` to the old owners, until the staged layout is applied.
async fn a_layout_overtakes_deletions(stage: &Stage, writer: usize, old: &[usize], between: usize) -> Overtaken {
    stage.note(&format!("what {writer} sends to the owners comes late"));
    old.iter().for_each(|owner| stage.world.cluster.network.block(writer, *owner));
    let deletions = stage.keys().iter().map(|key| stage.begin_delete(writer, key)).collect();
    stage.pause(1, 200).await;
    let number = stage.apply_layout(between).await;
    stage.pause(4_000, 7_000).await;
    stage.note("it arrives");
    Overtaken { deletions, number }
}

/// Deletions are on their way from a gateway to the old owners while a layout brings two new ones, who receive what the old ones have.
/// Then the deletions arrive, and old and new owners do not reach each other any more.
pub(super) fn writes_are_under_way(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [stays, one, other] = stage.shuffled()[..] else { return };
        let [new, newer, writer, between] = [0, 1, 2, 3].map(|index| stage.roles + index);
        let (old, newcomers) = ([stays, one, other], [new, newer]);
        stage.stage_gateway(between, writer).await;
        let number = stage.change_layout(between, &[], &[]).await;
        stage.settled(number).await;
        stage.fill(&[between]).await;
        stage.stage_change(between, &[one, other], &newcomers).await;
        stage.pause(1_000, 2_000).await;
        stage.all_connected().await;
        let Overtaken { deletions, number } = a_layout_overtakes_deletions(&stage, writer, &old, between).await;
        stage.cut_only(&newcomers, &old);
        let reader = stage.reader(&newcomers, 200);
        for deletion in deletions {
            deletion.await.expect("a client does not panic");
        }
        stage.pause(20_000, 40_000).await;
        stage.read_all(&newcomers).await;
        drop(reader);
        stage.world.cluster.network.open_all_links();
        stage.settled(number).await;
    }
    .boxed()
}

/// As [`writes_are_under_way`], but who deletes has no role, so that no layout waits for its word. A gateway that cannot compare its rows
/// keeps the old layout alive until the deletions have arrived.
pub(super) fn a_stranger_writes(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [stays, one, other] = stage.shuffled()[..] else { return };
        let [new, newer, writer, between, waiting] = [0, 1, 2, 3, 4].map(|index| stage.roles + index);
        let (old, newcomers) = ([stays, one, other], [new, newer]);
        stage.fill(&[between]).await;
        stage.cut_between(&[waiting], &old);
        stage.stage_gateway(between, waiting).await;
        stage.stage_change(between, &[one, other], &newcomers).await;
        stage.pause(NOTICED_MS, NOTICED_MS + 2_000).await;
        let Overtaken { deletions, number } = a_layout_overtakes_deletions(&stage, writer, &old, between).await;
        stage.cut_only(&[new, newer, waiting], &old);
        for deletion in deletions {
            deletion.await.expect("a client does not panic");
        }
        stage.note(&format!("{waiting} reaches the old owners"));
        stage.cut_only(&newcomers, &old);
        let reader = stage.reader(&newcomers, 200);
        stage.pause(20_000, 40_000).await;
        stage.read_all(&newcomers).await;
        drop(reader);
        stage.world.cluster.network.open_all_links();
        stage.settled(number).await;
    }
    .boxed()
}
