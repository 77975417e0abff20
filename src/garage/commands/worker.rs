//! `garage worker …`, `garage repair …` and `garage block …`.

use garage_admin::blocks::{GetBlockInfo, ListBlockErrors, PurgeBlocks, RetryBlockResync};
use garage_admin::nodes::Multi;
use garage_admin::set_aside::{DiscardSetAsideRows, GetSetAsideRow, ListSetAsideRows, MergeSetAsideRows, WhichSetAside};
use garage_admin::workers::{
    GetWorkerInfo, GetWorkerVariable, LaunchRepairOperation, ListWorkers, RepairType, SetWorkerVariable,
};
use garage_block::scrub::ScrubCommand;
use serde::Serialize;

use super::confirmed;
use crate::args::worker::{BlockCommand, RepairArgs, RepairWhat, ScrubWhat, SetAsideWhat, WhichRows, WorkerCommand};
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::Output;
use crate::show::{of_nodes, set_aside as set_aside_show, worker as show};

fn nodes(all: bool) -> String {
    if all { "*" } else { "self" }.to_owned()
}

/// The reply of the one node that was asked.
fn only<T>(multi: Multi<T>) -> Result<T, CliError> {
    let Multi { success, error } = multi;
    match (success.into_values().next(), error.into_values().next()) {
        (Some(reply), _) => Ok(reply),
        (None, Some(error)) => Err(CliError::Node(error)),
        (None, None) => Err(CliError::Incomplete),
    }
}

/// Prints what nodes said; an error of any of them is the command's.
fn each<T: Serialize>(output: Output, multi: &Multi<T>, text: impl FnOnce(&Multi<T>) -> String) -> Result<(), CliError> {
    output.reply(multi, text)?;
    if multi.error.is_empty() { Ok(()) } else { Err(CliError::Incomplete) }
}

pub(super) async fn worker(daemon: &Daemon, command: WorkerCommand, output: Output) -> Result<(), CliError> {
    match command {
        WorkerCommand::List { busy, errors, all_nodes } => {
            let list = ListWorkers { node: nodes(all_nodes), busy_only: busy, error_only: errors };
            if all_nodes {
                return each(output, &daemon.call(list).await?, |multi| of_nodes(multi, |workers| show::list(workers)));
            }
            output.reply(&only(daemon.call(list).await?)?, |workers| show::list(workers))
        }
        WorkerCommand::Info { id, all_nodes } => {
            let info = GetWorkerInfo { node: nodes(all_nodes), id };
            if all_nodes {
                return each(output, &daemon.call(info).await?, |multi| of_nodes(multi, show::info));
            }
            let info = only(daemon.call(info).await?)?;
            output.reply(&info, show::info)
        }
        WorkerCommand::Get { variable, all_nodes } => {
            let values = daemon.call(GetWorkerVariable { node: nodes(all_nodes), variable }).await?;
            each(output, &values, show::variables)
        }
        WorkerCommand::Set { variable, value, all_nodes } => {
            let set = daemon.call(SetWorkerVariable { node: nodes(all_nodes), variable, value }).await?;
            each(output, &set, show::variables_set)
        }
    }
}

pub(super) async fn repair(daemon: &Daemon, args: RepairArgs, output: Output) -> Result<(), CliError> {
    let RepairArgs { all_nodes, yes, what } = args;
    let repair_type = match what {
        RepairWhat::SetAside { command } => return set_aside(daemon, command, nodes(all_nodes), yes, output).await,
        RepairWhat::Tables => RepairType::Tables,
        RepairWhat::Blocks => RepairType::Blocks,
        RepairWhat::Versions => RepairType::Versions,
        RepairWhat::Mpu => RepairType::MultipartUploads,
        RepairWhat::BlockRefs => RepairType::BlockRefs,
        RepairWhat::BlockRc => RepairType::BlockRc,
        RepairWhat::LostBlocks => RepairType::LostBlocks,
        RepairWhat::DamagedRows => RepairType::DamagedRows,
        RepairWhat::Rebalance => RepairType::Rebalance,
        RepairWhat::Aliases => RepairType::Aliases,
        RepairWhat::Scrub { command: ScrubWhat::SetTranquility { tranquility } } => {
            let (variable, value) = ("scrub-tranquility".to_owned(), tranquility.to_string());
            return worker(daemon, WorkerCommand::Set { variable, value, all_nodes }, output).await;
        }
        RepairWhat::Scrub { command: ScrubWhat::Start } => RepairType::Scrub(ScrubCommand::Start),
        RepairWhat::Scrub { command: ScrubWhat::Pause } => RepairType::Scrub(ScrubCommand::Pause),
        RepairWhat::Scrub { command: ScrubWhat::Resume } => RepairType::Scrub(ScrubCommand::Resume),
        RepairWhat::Scrub { command: ScrubWhat::Cancel } => RepairType::Scrub(ScrubCommand::Cancel),
    };
    if repair_type == RepairType::DamagedRows {
        confirmed(yes, "The objects whose rows are damaged are lost for good; the log of the node names them")?;
    }
    confirmed(yes, "A repair reads much of what the node stores and may remove what is superfluous")?;
    let launched = daemon.call(LaunchRepairOperation { node: nodes(all_nodes), repair_type }).await?;
    each(output, &launched, |multi| show::launched(multi, repair_type))
}

async fn set_aside(daemon: &Daemon, command: SetAsideWhat, node: String, yes: bool, output: Output) -> Result<(), CliError> {
    let which = |rows: WhichRows| WhichSetAside { all: rows.all, ids: rows.ids };
    match command {
        SetAsideWhat::List => each(output, &daemon.call(ListSetAsideRows { node }).await?, set_aside_show::list),
        SetAsideWhat::Show { id } => each(output, &daemon.call(GetSetAsideRow { node, id }).await?, set_aside_show::content),
        SetAsideWhat::Merge(rows) => {
            confirmed(yes, "What these rows say is written again, as if it were written now: what was deleted may be back")?;
            let settled = daemon.call(MergeSetAsideRows { node, which: which(rows) }).await?;
            each(output, &settled, set_aside_show::settled)
        }
        SetAsideWhat::Discard(rows) => {
            confirmed(yes, "These rows are lost for good, with what only they say")?;
            let settled = daemon.call(DiscardSetAsideRows { node, which: which(rows) }).await?;
            each(output, &settled, set_aside_show::settled)
        }
    }
}

pub(super) async fn block(daemon: &Daemon, command: BlockCommand, output: Output) -> Result<(), CliError> {
    let node = nodes(false);
    match command {
        BlockCommand::ListErrors => {
            output.reply(&only(daemon.call(ListBlockErrors { node }).await?)?, |errors| show::block_errors(errors))
        }
        BlockCommand::Info { hash } => {
            output.reply(&only(daemon.call(GetBlockInfo { node, block_hash: hash }).await?)?, show::block_info)
        }
        BlockCommand::RetryNow { hashes, all } => {
            let retry = RetryBlockResync { node, all, block_hashes: (!all).then_some(hashes) };
            let queued = only(daemon.call(retry).await?)?;
            output
                .reply(&queued, |queued| format!("{} blocks returned in queue for a retry now (check the logs)\n", queued.count))
        }
        BlockCommand::Purge { yes, hashes } => {
            confirmed(yes, "Every object that contains one of these blocks is deleted for good")?;
            let purged = only(daemon.call(PurgeBlocks { node, block_hashes: hashes }).await?)?;
            output.reply(&purged, show::purged)
        }
    }
}
