//! Stories of deletions whose tombstones are collected while somebody does not know of them, or something is still on its way.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_rpc::layout::history::MissingData;

use super::Stage;
use crate::cluster::network::Death;

/// The machines of the first layout by ascending id: the first of them collects.
fn by_id(stage: &Stage) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..stage.roles).collect();
    numbers.sort_by_key(|number| stage.id(*number));
    numbers
}

/// One owner is away, longer than tombstones are kept where all are there, while everything it has is deleted.
pub(super) fn an_owner_is_absent(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [absent, one, other] = stage.shuffled()[..] else { return };
        stage.fill(&[absent, one, other]).await;
        stage.pause(1, 1_000).await;
        stage.note(&format!("{absent} is absent"));
        let is_off = stage.is_drawn(2);
        if is_off {
            stage.machine(absent).crash(Death::Silent)
        } else {
            stage.cut_off(absent)
        }
        for key in stage.keys() {
            stage.delete(stage.some(&[one, other]), key).await;
        }
        stage.pause(5_000, 30_000).await;
        stage.note(&format!("{absent} is back"));
        if is_off {
            stage.machine(absent).restart().await;
        }
        stage.world.cluster.network.open_all_links();
        let reader = stage.reader(&[absent, one, other], 100);
        stage.pause(2_000, 10_000).await;
        drop(reader);
    }
    .boxed()
}

/// The third copy of a write is under way while the row is deleted and its tombstone collected, and arrives then.
pub(super) fn a_copy_comes_late(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [collector, writer, late] = by_id(&stage)[..] else { return };
        let (writer, late) = if stage.is_drawn(2) { (writer, late) } else { (late, writer) };
        for round in 0..3 {
            stage.all_connected().await;
            stage.note(&format!("round {round}: what {writer} sends to {late} comes late"));
            stage.world.cluster.network.block(writer, late);
            stage.fill(&[writer]).await;
            for key in stage.keys() {
                stage.delete(collector, key).await;
            }
            stage.pause(2_000, 6_500).await;
            stage.note("it arrives");
            stage.world.cluster.network.open_all_links();
            stage.pause(1, 500).await;
            for _time in 0..3 {
                stage.read_all(&[collector, writer, late]).await;
            }
        }
    }
    .boxed()
}

/// Somebody has the answer of one owner to a read, and waits for another's, while the row is deleted and its tombstone collected. What
/// it then writes back must not bring the row back.
pub(super) fn a_reader_comes_late(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [collector, one, other] = by_id(&stage)[..] else { return };
        let reader = stage.roles;
        for round in 0..3 {
            stage.all_connected().await;
            stage.fill(&[collector, one, other]).await;
            let early = stage.some(&[collector, one, other]);
            stage.note(&format!("round {round}: {reader} only reaches {early}"));
            for owner in [collector, one, other] {
                if owner != early {
                    stage.world.cluster.network.block(reader, owner);
                }
            }
            let readers: Vec<_> = (0..stage.keys().len() * 2).map(|_number| stage.reader(&[reader], 200)).collect();
            stage.pause(100, 500).await;
            for key in stage.keys() {
                stage.delete(collector, key).await;
            }
            stage.pause(2_000, 6_500).await;
            stage.note("it reaches all");
            stage.world.cluster.network.open_all_links();
            stage.pause(1_000, 3_000).await;
            drop(readers);
            stage.read_all(&[collector, one, other]).await;
        }
    }
    .boxed()
}

/// One owner misses deletions without being away; before it is compared with the others, their tombstones are old enough to be collected.
pub(super) fn a_deletion_is_missed(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [collector, one, other] = by_id(&stage)[..] else { return };
        for round in 0..2 {
            stage.all_connected().await;
            let (writer, late) = if stage.is_drawn(2) { (one, other) } else { (other, one) };
            stage.fill(&[collector, writer, late]).await;
            stage.pause(200, 1_000).await;
            stage.note(&format!("round {round}: what {writer} deletes does not reach {late}"));
            stage.world.cluster.network.block(writer, late);
            for key in stage.keys() {
                stage.delete(writer, key).await;
            }
            stage.pause(2_500, 5_000).await;
            stage.read_all(&[collector, late]).await;
            stage.world.cluster.network.open_all_links();
            stage.pause(1, 3_000).await;
            stage.read_all(&[collector, writer, late]).await;
        }
    }
    .boxed()
}

/// The clock of the one who writes is behind by more than tombstones are kept.
const BEHIND_MS: i64 = 600_000;
/// So long that a link may be cut between two steps of a collection.
const SLOW_LINKS: Duration = Duration::from_millis(800);

/// The last step of a collection does not reach one owner, which keeps the tombstones. Somebody whose clock is behind then writes to the
/// same keys, before that owner tells the others of the tombstones again.
pub(super) fn a_collection_breaks_off(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [collector, one, other] = by_id(&stage)[..] else { return };
        let writer = stage.roles;
        stage.machine(writer).clock.set_off_by_ms(-BEHIND_MS);
        for round in 0..3 {
            stage.all_connected().await;
            let late = stage.some(&[one, other]);
            stage.fill(&[collector, one, other]).await;
            for key in stage.keys() {
                stage.delete(collector, key).await;
            }
            stage.pause(200, 1_000).await;
            stage.world.cluster.network.set_delay_max(SLOW_LINKS);
            stage.pause(1_500, 5_500).await;
            stage.note(&format!("round {round}: what {collector} sends to {late} comes late"));
            stage.world.cluster.network.block(collector, late);
            stage.pause(1_000, 2_000).await;
            stage.world.cluster.network.set_delay_max(stage.world.usual_delay);
            stage.fill(&[writer]).await;
            stage.world.cluster.machines.iter().filter_map(|machine| machine.node()).for_each(|node| node.sync.request());
            stage.pause(1_000, 4_000).await;
            stage.read_all(&[collector, one, other]).await;
            stage.world.cluster.network.open_all_links();
            stage.read_all(&[collector, one, other]).await;
        }
        stage.machine(writer).clock.set_off_by_ms(0);
    }
    .boxed()
}

/// An owner is off while another takes its place and everything is deleted.
struct Replaced {
    /// Who is off, with rows that nobody else has any more.
    old: usize,
    one: usize,
    other: usize,
    new: usize,
}

async fn an_owner_is_replaced(stage: &Stage) -> Option<Replaced> {
    let [old, one, other] = stage.shuffled()[..] else { return None };
    let new = stage.roles;
    stage.fill(&[old, one, other]).await;
    stage.pause(1, 1_000).await;
    stage.note(&format!("{old} is off"));
    stage.machine(old).crash(Death::Reset);
    let number = stage.change_layout(one, &[old], &[new]).await;
    stage.pause(500, 2_000).await;
    let layout = stage.machine(one).node().expect("it runs").layout;
    let dead = [stage.id(old)].into_iter().collect();
    layout.skip_dead_nodes(number, dead, MissingData::Refuse).await.expect("a dead node can be skipped");
    stage.settled(number).await;
    for key in stage.keys() {
        stage.delete(stage.some(&[one, other, new]), key).await;
    }
    Some(Replaced { old, one, other, new })
}

/// The tombstones are collected, and layouts follow each other until nobody remembers that the old owner was one. Then it is given its
/// place again.
pub(super) fn an_owner_returns_late(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let Some(Replaced { old, one, other, new }) = an_owner_is_replaced(&stage).await else { return };
        let layout = stage.machine(one).node().expect("it runs").layout;
        while layout.current().history().numbered(1).next().is_some() {
            let number = stage.change_layout(one, &[], &[new]).await;
            stage.settled(number).await;
            // Blocks are looked at, and the layouts before are forgotten.
            stage.pause(1_000, 5_000).await;
        }
        stage.pause(5_000, 30_000).await;
        let reader = stage.reader(&[one, other, new], 200);
        let number = stage.change_layout(one, &[new], &[old]).await;
        stage.note(&format!("{old} is back as an owner"));
        stage.machine(old).restart().await;
        stage.settled(number).await;
        stage.pause(5_000, 30_000).await;
        drop(reader);
    }
    .boxed()
}

/// The tombstones are collected, and the old owner comes back, either to hand its rows over or to be an owner again.
pub(super) fn an_old_owner_returns(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let Some(Replaced { old, one, other, new }) = an_owner_is_replaced(&stage).await else { return };
        stage.pause(5_000, 30_000).await;
        let reader = stage.reader(&[one, other, new], 200);
        if stage.is_drawn(2) {
            let number = stage.change_layout(one, &[new], &[old]).await;
            stage.note(&format!("{old} is back as an owner"));
            stage.machine(old).restart().await;
            stage.settled(number).await;
        } else {
            stage.note(&format!("{old} is back without a role"));
            stage.machine(old).restart().await;
        }
        stage.pause(5_000, 30_000).await;
        drop(reader);
    }
    .boxed()
}
