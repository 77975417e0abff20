//! Stories of uploads in parts whose ends break off.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Stage;
use crate::cluster::network::Death;

/// A completion claims its upload at one owner only. That it gives up is heard by another owner only, who is away when the other two
/// find the claim: they may carry it out, and the object that they make must keep the list of its parts when the third is back.
pub(super) fn a_completion_breaks_off(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [claimed, unaware, told] = stage.shuffled()[..] else { return };
        let writer = stage.roles;
        let (name, machine) = (format!("story on {writer}"), stage.machine(writer).clone());
        stage.fill(&[claimed, unaware, told]).await;
        stage.world.create_upload(&name, &machine, stage.some_key()).await;
        stage.world.upload_part(&name, &machine).await;
        stage.pause(100, 1_000).await;
        let completion = tokio::spawn({
            let (world, name, machine) = (stage.world.clone(), name.clone(), machine.clone());
            async move { world.complete(&name, &machine).await }
        });
        stage.pause(2, 10).await;
        stage.note(&format!("what {writer} says reaches {claimed} only; {told} starts again"));
        stage.world.cluster.network.block(writer, unaware);
        stage.machine(told).crash(Death::Reset);
        stage.machine(told).restart().await;
        stage.pause(1_000, 5_000).await;
        stage.note(&format!("{writer} reaches {told} only"));
        stage.world.cluster.network.block(writer, claimed);
        completion.await.expect("a client does not panic");
        stage.pause(1_000, 5_000).await;
        stage.note(&format!("{told} is away"));
        stage.cut_only(&[told], &[claimed, unaware, writer]);
        stage.pause(70_000, 130_000).await;
        stage.read_all(&[claimed, unaware]).await;
        stage.note(&format!("{told} is back"));
        stage.world.cluster.network.open_all_links();
        stage.pause(5_000, 20_000).await;
        stage.read_all(&[claimed, unaware, told]).await;
    }
    .boxed()
}
