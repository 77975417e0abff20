//! `garage meta …`

use garage_admin::snapshots::CreateMetadataSnapshot;

use crate::args::MetaCommand;
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::Output;
use crate::show;

pub(super) async fn run(daemon: &Daemon, command: MetaCommand, output: Output) -> Result<(), CliError> {
    let MetaCommand::Snapshot { all_nodes } = command;
    let node = if all_nodes { "*" } else { "self" }.to_owned();
    let made = daemon.call(CreateMetadataSnapshot { node }).await?;
    output.reply(&made, show::cluster::snapshots)?;
    if made.error.is_empty() { Ok(()) } else { Err(CliError::NoSnapshot { failed: made.error.len() }) }
}
