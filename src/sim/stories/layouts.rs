//! Stories of layouts that change while clients read and write.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

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
/// Then the stale one learns what it missed. The new ones must not be asked before they have as well.
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
        stage.pause(10_000, 30_000).await;
        stage.note(&format!("{stale} reaches the others again"));
        stage.world.cluster.network.open_all_links();
        for new in [new, newer] {
            stage.cut(new, one);
            stage.cut(new, last);
        }
        let readers: Vec<_> = (0..3).map(|_number| stage.reader(&[new, newer, stale], 40)).collect();
        stage.pause(5_000, 20_000).await;
        stage.note("all reach all");
        stage.world.cluster.network.open_all_links();
        stage.pause(2_000, 10_000).await;
        drop(readers);
    }
    .boxed()
}
