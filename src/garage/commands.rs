//! What commands do: one operation after another, then a text.

mod bucket;
mod cluster;
mod convert_db;
mod json_api;
mod key;
mod layout;
mod meta;
mod worker;

use garage_admin::buckets::{DamagedRow, ListDamagedRows};
use garage_rpc::error::ErrorCode;

use crate::args::{Command, Global, NodeCommand};
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::Output;
use crate::{server, settings};

/// Runs a command to its end.
///
/// # Errors
/// [`CliError`], in words for whoever typed the command.
pub async fn run(global: &Global, command: Command) -> Result<(), CliError> {
    let output = if global.json { Output::Json } else { Output::Text };
    match command {
        Command::Server(args) => server::run(global, &args).await,
        Command::Node(NodeCommand::Id(args)) | Command::NodeId(args) => cluster::node_id(global, &args, output),
        // Nothing else runs meanwhile.
        Command::ConvertDb(args) => convert_db::run(&args, output),
        remote => {
            let daemon = Daemon::connect(&settings::target(global)?).await?;
            run_remote(&daemon, remote, output).await
        }
    }
}

async fn run_remote(daemon: &Daemon, command: Command, output: Output) -> Result<(), CliError> {
    match command {
        Command::Status => cluster::status(daemon, output).await,
        Command::Node(NodeCommand::Connect { peer }) => cluster::connect(daemon, &peer, output).await,
        Command::Node(NodeCommand::AcceptDatabase(args)) => cluster::accept_database(daemon, &args, output).await,
        Command::Layout(command) => layout::run(daemon, command, output).await,
        Command::Bucket(command) => bucket::run(daemon, command, output).await,
        Command::Key(command) => key::run(daemon, command, output).await,
        Command::Stats(args) => cluster::stats(daemon, &args, output).await,
        Command::Meta(command) => meta::run(daemon, command, output).await,
        Command::Worker(command) => worker::worker(daemon, command, output).await,
        Command::Repair(args) => worker::repair(daemon, args, output).await,
        Command::Block(command) => worker::block(daemon, command, output).await,
        Command::JsonApi(args) => json_api::run(daemon, &args).await,
        Command::Server(_) | Command::ConvertDb(_) | Command::Node(NodeCommand::Id(_)) | Command::NodeId(_) => Ok(()),
    }
}

/// The damaged rows that a list for people may be short of. JSON replies have no place for them, and an older daemon cannot tell.
///
/// # Errors
/// [`CliError::Call`], [`CliError::Refused`].
async fn damaged_rows(daemon: &Daemon, output: Output) -> Result<Vec<DamagedRow>, CliError> {
    if output == Output::Json {
        return Ok(Vec::new());
    }
    match daemon.call(ListDamagedRows).await {
        Err(CliError::Call { source, .. }) if source.code == ErrorCode::UnknownEndpoint => Ok(Vec::new()),
        told => told,
    }
}

/// Refuses to go on without confirmation.
///
/// # Errors
/// [`CliError::Usage`] with `what` would happen.
fn confirmed(yes: bool, what: &str) -> Result<(), CliError> {
    if yes { Ok(()) } else { Err(CliError::Usage(format!("{what}: add --yes if you are sure. Nothing was changed."))) }
}
