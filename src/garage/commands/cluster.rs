//! `garage status`, `garage node …` and `garage stats`.

use garage_admin::cluster::{ConnectClusterNodes, GetClusterStatus};
use garage_admin::databases::AcceptDatabase;
use garage_admin::layout::GetClusterLayout;
use garage_admin::nodes::{GetNodeStatistics, Multi, NodeStatistics};
use garage_types::NodeId;
use garage_types::config::{Config, PeerAddress};
use serde::Serialize;

use crate::args::{AcceptDatabaseArgs, Global, NodeIdArgs, StatsArgs};
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::{Output, print};
use crate::{settings, show};

pub(super) async fn status(daemon: &Daemon, output: Output) -> Result<(), CliError> {
    let status = daemon.call(GetClusterStatus).await?;
    let layout = daemon.call(GetClusterLayout).await?;
    output.reply(&status, |status| show::cluster::status(status, &layout))
}

pub(super) async fn connect(daemon: &Daemon, peer: &PeerAddress, output: Output) -> Result<(), CliError> {
    let replies = daemon.call(ConnectClusterNodes(vec![peer.to_string()])).await?;
    match replies.iter().find_map(|reply| reply.error.as_ref()) {
        Some(error) => Err(CliError::NotConnected(error.clone())),
        None => output.reply(&replies, |replies| show::cluster::connected(replies, peer)),
    }
}

pub(super) async fn accept_database(daemon: &Daemon, args: &AcceptDatabaseArgs, output: Output) -> Result<(), CliError> {
    let AcceptDatabaseArgs { all_nodes, force, yes } = *args;
    super::confirmed(yes, ACCEPTANCE)?;
    let node = if all_nodes { "*" } else { "self" }.to_owned();
    let accepted = daemon.call(AcceptDatabase { node, force }).await?;
    output.reply(&accepted, show::cluster::accepted)?;
    if accepted.error.is_empty() { Ok(()) } else { Err(CliError::Incomplete) }
}

/// What is lost with an accepted database.
const ACCEPTANCE: &str = "Whatever was written after an accepted database was copied, and is in no other accepted one, is lost; what was \
    deleted since may be back, and objects whose blocks are gone cannot be read";

pub(super) async fn stats(daemon: &Daemon, args: &StatsArgs, output: Output) -> Result<(), CliError> {
    let node = if args.all_nodes { "*" } else { "self" }.to_owned();
    let nodes = daemon.call(GetNodeStatistics { node }).await?;
    let status = daemon.call(GetClusterStatus).await?;
    let layout = daemon.call(GetClusterLayout).await?;
    let shown = ShownStats { nodes: &nodes, cluster: show::stats::room_left(&status, &layout) };
    output.reply(&shown, |shown| show::stats::stats(shown.nodes, &status, &layout))?;
    if nodes.error.is_empty() { Ok(()) } else { Err(CliError::Incomplete) }
}

/// What `garage stats` says, as JSON.
#[derive(Serialize)]
struct ShownStats<'a> {
    #[serde(flatten)]
    nodes: &'a Multi<NodeStatistics>,
    cluster: show::stats::RoomLeft,
}

/// What `garage node id` says, as JSON.
#[derive(Serialize)]
struct OwnId {
    id: NodeId,
    /// `<node id>@<host>:<port>`, when the configuration has a public address.
    peer: Option<String>,
}

pub(super) fn node_id(global: &Global, args: &NodeIdArgs, output: Output) -> Result<(), CliError> {
    let config = settings::load(global, settings::locate(global)?)?.config;
    let id = settings::node_id(&config.metadata_dir)?;
    let peer = config.rpc.public_addr.clone().map(|address| PeerAddress { node: id, address }.to_string());
    if output == Output::Json {
        return output.reply(&OwnId { id, peer }, |_reply| String::new());
    }
    print(&format!("{}\n", peer.clone().unwrap_or_else(|| id.to_string())))?;
    if !args.quiet {
        eprint!("{}", instructions(id, peer, &config));
    }
    Ok(())
}

/// How to use the id. Goes to standard error, so that standard output has the id alone.
fn instructions(id: NodeId, peer: Option<String>, config: &Config) -> String {
    let mut text = String::new();
    let peer = peer.unwrap_or_else(|| {
        text += "\nrpc_public_addr is not set: replace 127.0.0.1 by an address that the other nodes can reach.\n";
        format!("{id}@127.0.0.1:{}", config.rpc.bind_addr.port())
    });
    text + &format!(
        "\nTo connect another node to this one, type there:\n\n    garage node connect {peer}\n\n\
         or write in its configuration file:\n\n    bootstrap_peers = [\"{peer}\"]\n\n\
         rpc_secret must be the same on all nodes, and secret. The id alone lets nobody in; whoever knows it together with\n\
         rpc_secret and can reach the node can join the cluster, so there is no need to publish it either.\n"
    )
}

#[cfg(test)]
mod tests {
    use garage_types::NodeId;
    use garage_types::config::{Config, Overrides};

    use super::instructions;

    #[test]
    fn without_a_public_address_a_placeholder_is_shown() {
        let text = "metadata_dir = \"/m\"\ndata_dir = \"/d\"\nreplication_factor = 1\nrpc_bind_addr = \"[::]:4901\"\n[s3_api]\ns3_region = \"g\"";
        let config = Config::resolve(text, &Overrides::default(), &Overrides::default()).unwrap().config;
        let id = NodeId::from_bytes([0xab; 32]);
        let shown = instructions(id, None, &config);
        assert!(
            shown.contains("rpc_public_addr is not set") && shown.contains(&format!("garage node connect {id}@127.0.0.1:4901\n"))
        );
        let shown = instructions(id, Some("x@h:1".into()), &config);
        assert!(!shown.contains("is not set") && shown.contains("bootstrap_peers = [\"x@h:1\"]"));
    }
}
