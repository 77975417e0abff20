//! Stories of layouts that must be refused: made under a number that is taken, or not fit to be one.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_rpc::endpoint::Message;
use garage_rpc::layout::LayoutHistory;
use garage_rpc::layout::gossip::MergeLayout;
use garage_types::codec::encode;
use garage_types::{Clock, chain};

use super::Stage;

/// For one call from machine to machine.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Until a peer that was cut off is held to be down, and waited for no more.
const NOTICED_MS: u64 = 15_000;

/// A layout replaces one owner, and is the only one. Then an operator whose machine has heard of nothing replaces the two others under
/// the same number; the machines of that layout reach none of those who have the rows. An operator who is asked to choose, chooses
/// the newcomer.
pub(super) fn a_rival_comes_late(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [one, leaves, other] = stage.shuffled()[..] else { return };
        let [comes, rival, newer, between] = [0, 1, 2, 3].map(|index| stage.roles + index);
        let informed = [one, leaves, other, comes, newer, between];
        stage.fill(&informed).await;
        stage.cut_off(rival);
        stage.pause(NOTICED_MS, NOTICED_MS + 2_000).await;
        let number = stage.change_layout(between, &[leaves], &[comes]).await;
        stage.settled_on(&informed, number).await;
        stage.fill(&informed).await;
        stage.change_layout(rival, &[one, other], &[rival, newer]).await;
        let made = stage.machine(rival).node().expect("it runs").layout.current().live_versions().last().copied();
        let Some(made) = made else { return };
        stage.note(&format!("{rival} tells of its layout"));
        stage.cut_only(&[rival, newer, leaves], &[one, other, comes]);
        let readers = [stage.reader(&[rival, newer, leaves], 200), stage.reader(&[between], 200)];
        stage.pause(1_000, 3_000).await;
        let operator = stage.machine(between).node().expect("it runs").layout;
        match operator.resolve(made.digest.hex()).await {
            Ok(key) => stage.note(&format!("an operator chose {key:?}")),
            Err(error) => stage.note(&format!("an operator cannot choose: {}", chain(&error))),
        }
        stage.pause(5_000, 15_000).await;
        drop(readers);
    }
    .boxed()
}

/// Two operators make a layout each under one number: one adds gateways, of which one still compares its rows; the other makes two of
/// these gateways owners. What they have said of the first layout says nothing of the second.
pub(super) fn a_rival_comes_early(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [one, two, stays] = stage.shuffled()[..] else { return };
        let [new, newer, waiting, rival] = [0, 1, 2, 3].map(|index| stage.roles + index);
        let owners = [one, two, stays];
        stage.fill(&owners).await;
        stage.note(&format!("{rival} reaches nobody, and {waiting} only one owner"));
        stage.cut_off(rival);
        stage.cut_between(&[waiting], &[two, stays]);
        stage.pause(NOTICED_MS, NOTICED_MS + 2_000).await;
        for gateway in [new, newer, waiting] {
            stage.stage_gateway(one, gateway).await;
        }
        let number = stage.change_layout(one, &[], &[]).await;
        stage.synced(one, &[one, two, stays, new, newer], number).await;
        stage.change_layout(rival, &[one, two], &[new, newer]).await;
        stage.note(&format!("{rival} tells of its layout, and {waiting} reaches all"));
        stage.cut_only(&[new, newer], &owners);
        let readers = [stage.reader(&[new, newer], 200), stage.reader(&[rival], 200)];
        stage.pause(20_000, 35_000).await;
        drop(readers);
    }
    .boxed()
}

/// A peer tells of a layout in which one machine has two of the three copies of every partition. Nobody may take it in.
pub(super) fn an_unsound_layout_is_told(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [teller, told, leaves] = stage.shuffled()[..] else { return };
        let all = [teller, told, leaves, stage.roles];
        stage.fill(&all).await;
        let machine = stage.machine(teller);
        let node = machine.node().expect("it runs");
        let mut history = LayoutHistory::clone(node.layout.current().history());
        let (now, comes) = (machine.clock.now(), stage.roles);
        history.stage_removal(now, stage.id(leaves)).expect("a removal can be staged");
        history.stage_role(now, stage.id(comes), stage.role(comes)).expect("a role can be staged");
        history.apply(2).expect("the layout can be made");
        let mut told_of = encode(&history);
        put_copies_together(&mut told_of);
        let answer = node.mesh.call(stage.id(told), Message::new(MergeLayout::new(told_of)), TIMEOUT).await;
        stage.note(&format!("{told} was told of an unsound layout: {:?}", answer.map(drop)));
        let reader = stage.reader(&all, 200);
        stage.pause(1_000, 5_000).await;
        stage.fill(&all).await;
        stage.pause(1, 5_000).await;
        drop(reader);
    }
    .boxed()
}

/// Partitions of a first layout, and copies of each.
const PARTITIONS: usize = 256;
const COPIES: usize = 3;

/// In the newest layout of an encoded history, puts the second copy of every partition where the first is.
fn put_copies_together(history: &mut [u8]) {
    // Two bytes name a node.
    let length = PARTITIONS * COPIES * 2;
    let [.., high, low] = length.to_be_bytes();
    let field = [0xa1, b'c', 0xc5, high, low];
    let last = history.windows(field.len()).rposition(|window| window == field).expect("a history with a layout");
    let start = last + field.len();
    history[start..start + length].chunks_exact_mut(COPIES * 2).for_each(|row| row.copy_within(0..2, 2));
}
