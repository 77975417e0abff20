//! Operations on the background jobs of nodes: listing them, their settings, and one-off repairs.

use std::collections::BTreeMap;
use std::time::Duration;

use garage_block::scrub::ScrubCommand;
use garage_model::ModelError;
use garage_model::background::{RESYNC_WORKERS_MAX, Variables};
use garage_model::repair::Repair;
use garage_model::scrub::ScrubError;
use garage_table::damage::GivenUp;
use garage_worker::registry::State;
use garage_worker::{WorkerId, WorkerInfo as Listed};
use serde::{Deserialize, Serialize};

use crate::date::Date;
use crate::error::AdminError;
use crate::nodes::{Multi, TELLING, ask_each};
use crate::operations::{AdminService, Operation, Visitor};

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkerState {
    Busy,
    #[serde(rename_all = "camelCase")]
    Throttled {
        duration_secs: f64,
    },
    Idle,
    Done,
    Paused,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    pub message: String,
    pub secs_ago: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerInfo {
    pub id: u64,
    pub name: String,
    pub state: WorkerState,
    pub errors: u64,
    pub consecutive_errors: u64,
    pub last_error: Option<LastError>,
    pub tranquility: Option<u32>,
    pub progress: Option<String>,
    pub queue_length: Option<u64>,
    pub persistent_errors: Option<u64>,
    /// Lines for people.
    pub freeform: Vec<String>,
}

fn shown(worker: Listed, now: garage_types::Timestamp) -> WorkerInfo {
    let secs_ago = |at: garage_types::Timestamp| now.as_secs().saturating_sub(at.as_secs());
    WorkerInfo {
        id: worker.id.0,
        name: worker.name,
        state: match worker.state {
            State::Busy => WorkerState::Busy,
            State::Throttled { rest } => WorkerState::Throttled { duration_secs: rest.as_secs_f64() },
            State::Idle => WorkerState::Idle,
            State::Done => WorkerState::Done,
            State::Paused => WorkerState::Paused,
        },
        errors: worker.errors,
        consecutive_errors: worker.consecutive_errors,
        last_error: worker.last_error.map(|error| LastError { secs_ago: secs_ago(error.at), message: error.message }),
        tranquility: worker.status.tranquility,
        progress: worker.status.progress,
        queue_length: worker.status.queue_length,
        persistent_errors: worker.status.persistent_errors,
        freeform: worker.status.messages,
    }
}

/// `node`: see [`crate::nodes`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListWorkers {
    pub node: String,
    #[serde(default)]
    pub busy_only: bool,
    #[serde(default)]
    pub error_only: bool,
}

impl Operation for ListWorkers {
    const ENDPOINT: &'static str = "admin.ListWorkers/1";
    type Reply = Multi<Vec<WorkerInfo>>;

    async fn run(self, service: &AdminService) -> Result<Multi<Vec<WorkerInfo>>, AdminError> {
        let ListWorkers { node, busy_only, error_only } = self;
        ask_each(service, &node, OwnWorkers { busy_only, error_only }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnWorkers {
    busy_only: bool,
    error_only: bool,
}

impl Operation for OwnWorkers {
    const ENDPOINT: &'static str = "admin.node.OwnWorkers/1";
    const PATIENCE: Option<Duration> = Some(TELLING);
    type Reply = Vec<WorkerInfo>;

    async fn run(self, service: &AdminService) -> Result<Vec<WorkerInfo>, AdminError> {
        let now = service.garage.clock().now();
        let wanted = |worker: &WorkerInfo| {
            let busy = matches!(worker.state, WorkerState::Busy | WorkerState::Throttled { .. });
            (busy || !self.busy_only) && (worker.errors > 0 || !self.error_only)
        };
        Ok(service.garage.workers().list().into_iter().map(|worker| shown(worker, now)).filter(wanted).collect())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetWorkerInfo {
    pub node: String,
    pub id: u64,
}

impl Operation for GetWorkerInfo {
    const ENDPOINT: &'static str = "admin.GetWorkerInfo/1";
    type Reply = Multi<WorkerInfo>;

    async fn run(self, service: &AdminService) -> Result<Multi<WorkerInfo>, AdminError> {
        ask_each(service, &self.node, OwnWorker { id: self.id }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnWorker {
    id: u64,
}

impl Operation for OwnWorker {
    const ENDPOINT: &'static str = "admin.node.OwnWorker/1";
    const PATIENCE: Option<Duration> = Some(TELLING);
    type Reply = WorkerInfo;

    async fn run(self, service: &AdminService) -> Result<WorkerInfo, AdminError> {
        let worker = service.garage.workers().info(WorkerId(self.id)).ok_or(AdminError::NoSuchWorker { id: self.id })?;
        Ok(shown(worker, service.garage.clock().now()))
    }
}

/// The names under which settings and facts of workers are shown.
pub const VARIABLES: [&str; 6] = [
    "resync-tranquility",
    "resync-worker-count",
    "scrub-corruptions_detected",
    "scrub-last-completed",
    "scrub-next-run",
    "scrub-tranquility",
];

/// A setting that cannot be read or made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    #[error("there is no variable {name:?}: there are {}", VARIABLES.join(", "))]
    Unknown { name: String },
    #[error("{name} can only be read")]
    ReadOnly { name: String },
    #[error("{name} cannot be {value:?}: write a number from {min} to {max}")]
    Value { name: String, value: String, min: u32, max: u32 },
}

fn change(variables: &mut Variables, name: &str, value: &str) -> Result<(), VariableError> {
    let (place, min, max) = match name {
        "resync-tranquility" => (&mut variables.resync_tranquility, 0, 1000),
        "scrub-tranquility" => (&mut variables.scrub_tranquility, 0, 1000),
        "resync-worker-count" => (&mut variables.resync_worker_count, 1, RESYNC_WORKERS_MAX),
        name if VARIABLES.contains(&name) => return Err(VariableError::ReadOnly { name: name.to_owned() }),
        name => return Err(VariableError::Unknown { name: name.to_owned() }),
    };
    let refuse = || VariableError::Value { name: name.to_owned(), value: value.to_owned(), min, max };
    *place = value.parse().ok().filter(|value| (min..=max).contains(value)).ok_or_else(refuse)?;
    Ok(())
}

/// All variables, or one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetWorkerVariable {
    pub node: String,
    #[serde(default)]
    pub variable: Option<String>,
}

impl Operation for GetWorkerVariable {
    const ENDPOINT: &'static str = "admin.GetWorkerVariable/1";
    type Reply = Multi<BTreeMap<String, String>>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        ask_each(service, &self.node, OwnVariables { variable: self.variable }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnVariables {
    variable: Option<String>,
}

impl Operation for OwnVariables {
    const ENDPOINT: &'static str = "admin.node.OwnVariables/1";
    const PATIENCE: Option<Duration> = Some(TELLING);
    type Reply = BTreeMap<String, String>;

    async fn run(self, service: &AdminService) -> Result<BTreeMap<String, String>, AdminError> {
        let variables = service.garage.background().variables.get();
        let scrub = service.garage.scrub();
        let values = [
            variables.resync_tranquility.to_string(),
            variables.resync_worker_count.to_string(),
            scrub.corruptions.to_string(),
            scrub.last_completed.map_or_else(|| "never".to_owned(), |at| Date(at).to_string()),
            Date(scrub.next_run).to_string(),
            variables.scrub_tranquility.to_string(),
        ];
        let all = VARIABLES.into_iter().map(str::to_owned).zip(values);
        match self.variable {
            None => Ok(all.collect()),
            Some(name) if VARIABLES.contains(&name.as_str()) => Ok(all.filter(|(known, _value)| *known == name).collect()),
            Some(name) => Err(VariableError::Unknown { name }.into()),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWorkerVariable {
    pub node: String,
    pub variable: String,
    pub value: String,
}

/// A setting as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariableSet {
    pub variable: String,
    pub value: String,
}

impl Operation for SetWorkerVariable {
    const ENDPOINT: &'static str = "admin.SetWorkerVariable/1";
    type Reply = Multi<VariableSet>;

    async fn run(self, service: &AdminService) -> Result<Multi<VariableSet>, AdminError> {
        let SetWorkerVariable { node, variable, value } = self;
        // Refused before any node is asked.
        change(&mut Variables::default(), &variable, &value)?;
        ask_each(service, &node, OwnVariableSet { variable, value }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnVariableSet {
    variable: String,
    value: String,
}

impl Operation for OwnVariableSet {
    const ENDPOINT: &'static str = "admin.node.OwnVariableSet/1";
    type Reply = VariableSet;

    async fn run(self, service: &AdminService) -> Result<VariableSet, AdminError> {
        let OwnVariableSet { variable, value } = self;
        let file = &service.garage.background().variables;
        let mut tried = file.get();
        change(&mut tried, &variable, &value)?;
        file.change(|variables| change(variables, &variable, &value)).await.map_err(ModelError::State)??;
        service.garage.wake_resync();
        Ok(VariableSet { variable, value })
    }
}

/// What an operator may order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RepairType {
    Tables,
    Blocks,
    Versions,
    MultipartUploads,
    BlockRefs,
    BlockRc,
    /// Gives up the blocks of a database that was lost, where nobody else has its rows.
    LostBlocks,
    /// Gives up objects whose rows do not match their checksums, where nobody else is to have them.
    DamagedRows,
    Rebalance,
    Aliases,
    Scrub(ScrubCommand),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LaunchRepairOperation {
    pub node: String,
    pub repair_type: RepairType,
}

impl Operation for LaunchRepairOperation {
    const ENDPOINT: &'static str = "admin.LaunchRepairOperation/1";
    type Reply = Multi<()>;

    async fn run(self, service: &AdminService) -> Result<Multi<()>, AdminError> {
        ask_each(service, &self.node, OwnRepair { repair: self.repair_type }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnRepair {
    repair: RepairType,
}

impl Operation for OwnRepair {
    const ENDPOINT: &'static str = "admin.node.OwnRepair/1";
    type Reply = ();

    async fn run(self, service: &AdminService) -> Result<(), AdminError> {
        let repair = match self.repair {
            RepairType::Blocks => Repair::Blocks,
            RepairType::Versions => Repair::Versions,
            RepairType::MultipartUploads => Repair::MultipartUploads,
            RepairType::BlockRefs => Repair::BlockRefs,
            RepairType::BlockRc => Repair::BlockCounts,
            RepairType::Rebalance => Repair::Rebalance,
            RepairType::Scrub(command) => {
                return service.garage.command_scrub(command).await.map_err(|error| match error {
                    ScrubError::Refused(refusal) => AdminError::Scrub(refusal),
                    ScrubError::State(error) => AdminError::Model(ModelError::State(error)),
                });
            }
            RepairType::LostBlocks => {
                if service.garage.local().tables.give_up_lost_rows().await.map_err(ModelError::Table)? {
                    tracing::warn!("the operator gives up the blocks of the database that was lost");
                }
                Repair::Blocks
            }
            RepairType::DamagedRows => {
                let copies = service.garage.cluster().layout().replication_factor();
                if copies > 1 {
                    return Err(AdminError::OthersHaveIt { copies });
                }
                let GivenUp { rows, kept } = service.garage.local().tables.give_up_damaged_rows().await?;
                return match (rows, kept) {
                    (0, 0) => Err(AdminError::NoDamagedRows),
                    (_, 0) => Ok(()),
                    _ => Err(AdminError::DamagedRowsKept { rows, kept }),
                };
            }
            RepairType::Tables => {
                service.garage.sync().request();
                return Ok(());
            }
            RepairType::Aliases => {
                service.garage.start_repair_of_aliases();
                return Ok(());
            }
        };
        service.garage.start_repair(repair);
        Ok(())
    }
}

/// What nodes ask each other.
pub(crate) fn visit_internal(visitor: &mut impl Visitor) {
    visitor.visit::<OwnWorkers>();
    visitor.visit::<OwnWorker>();
    visitor.visit::<OwnVariables>();
    visitor.visit::<OwnVariableSet>();
    visitor.visit::<OwnRepair>();
}

#[cfg(test)]
mod tests {
    use garage_block::scrub::ScrubCommand;
    use garage_model::background::Variables;

    use super::{RepairType, VARIABLES, VariableError, WorkerState, change};

    #[test]
    fn settings_are_changed_within_their_limits_and_facts_are_not() {
        let mut variables = Variables::default();
        change(&mut variables, "resync-worker-count", "8").unwrap();
        assert_eq!(variables.resync_worker_count, 8);
        for value in ["0", "9", "-1", "x", ""] {
            let error = change(&mut variables, "resync-worker-count", value).unwrap_err();
            assert!(matches!(error, VariableError::Value { min: 1, max: 8, .. }), "{value}");
        }
        assert_eq!(variables.resync_worker_count, 8, "a refused value changes nothing");
        assert!(matches!(change(&mut variables, "scrub-next-run", "1"), Err(VariableError::ReadOnly { .. })));
        let unknown = change(&mut variables, "scrub", "1").unwrap_err().to_string();
        assert!(VARIABLES.iter().all(|name| unknown.contains(name)), "{unknown}");
    }

    #[test]
    fn the_json_is_that_of_the_interface() {
        assert_eq!(serde_json::to_string(&RepairType::BlockRc).unwrap(), r#""blockRc""#);
        assert_eq!(serde_json::to_string(&RepairType::Scrub(ScrubCommand::Start)).unwrap(), r#"{"scrub":"start"}"#);
        assert_eq!(serde_json::to_string(&WorkerState::Busy).unwrap(), r#""busy""#);
        let throttled = serde_json::to_string(&WorkerState::Throttled { duration_secs: 0.5 }).unwrap();
        assert_eq!(throttled, r#"{"throttled":{"durationSecs":0.5}}"#);
    }
}
