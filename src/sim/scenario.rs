//! Scenarios: how many machines, which faults, how much work; and running one of them by a seed.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use garage_rpc::quorum::ConsistencyMode;
use garage_types::planted::{Bug, plant};
use garage_types::random::SeededRandom;

use crate::checks;
use crate::cluster::Cluster;
use crate::cluster::machine::{Setup, Sizes};
use crate::faults::{Fault, heal, make_faults};
use crate::history::{History, Tally};
use crate::losses::{Loss, Losses};
use crate::s3;
use crate::workload::{Mix, World};
use tokio::sync::watch;

/// What the cluster can do by itself by now: faults and checks that need more are left out.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Owners of a row become equal without being read.
    pub anti_entropy: bool,
    /// Missing and damaged blocks are fetched from other owners, and blocks that nothing needs are deleted.
    pub block_resync: bool,
    /// What uploads leave behind whose outcome is in doubt is found and released.
    pub doubtful_uploads_end: bool,
}

pub const ABILITIES: Abilities = Abilities { anti_entropy: true, block_resync: true, doubtful_uploads_end: true };

#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub machines: usize,
    /// Machines with a role in the first layout.
    pub roles: usize,
    pub replication_factor: usize,
    pub consistency: ConsistencyMode,
    pub clients: u64,
    /// Of each client.
    pub operations: usize,
    /// How many keys they use.
    pub keys: usize,
    pub mix: Mix,
    pub faults: &'static [Fault],
    pub frontend: Frontend,
}

/// How clients speak with the machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend {
    /// They call the store itself.
    Store,
    /// All but one send S3 requests over HTTP; `mix` is for the one.
    S3,
}

const USUAL: Mix = Mix { put: 26, get: 26, delete: 10, copy: 10, list: 8, create: 6, part: 7, complete: 5 };
const UPLOADS: Mix = Mix { put: 6, get: 16, delete: 5, copy: 8, list: 4, create: 16, part: 22, complete: 17 };
const CROWD: Mix = Mix { put: 4, get: 84, delete: 2, copy: 2, list: 8, create: 0, part: 0, complete: 0 };

const ALL: &[Fault] = &[
    Fault::Delay,
    Fault::LoseConnections,
    Fault::BlockOneWay,
    Fault::Isolate,
    Fault::Tangle,
    Fault::Tangle,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashWriter,
    Fault::CrashWriter,
    Fault::Blackout,
    Fault::ClockJump,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::FullDatabase,
    Fault::FailingDisk,
    Fault::FailingDisk,
    Fault::UnreadableDatabase,
];
const LISTING: Mix = Mix { put: 45, get: 2, delete: 15, copy: 3, list: 35, create: 0, part: 0, complete: 0 };

const NETWORK: &[Fault] =
    &[Fault::Delay, Fault::LoseConnections, Fault::BlockOneWay, Fault::Isolate, Fault::Tangle, Fault::Tangle, Fault::ClockJump];

/// Where nobody asks who knows of earlier writes, only clocks order them.
const NO_CLOCKS: &[Fault] = &[
    Fault::Delay,
    Fault::LoseConnections,
    Fault::BlockOneWay,
    Fault::Isolate,
    Fault::Tangle,
    Fault::Tangle,
    Fault::Crash,
    Fault::CrashWriter,
    Fault::Blackout,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::FullDatabase,
];

/// Writes that break off half-way.
const BREAKS: &[Fault] = &[
    Fault::Delay,
    Fault::LoseConnections,
    Fault::LoseConnections,
    Fault::CrashWriter,
    Fault::CrashWriter,
    Fault::CrashWriter,
    Fault::CrashWriter,
    Fault::Tangle,
    Fault::ClockJump,
];

/// Machines that miss what the others write.
const LAGGING: &[Fault] = &[Fault::Isolate, Fault::Isolate, Fault::Crash, Fault::Tangle, Fault::LoseConnections];

/// Operators at work, and nothing else.
const LAYOUTS: &[Fault] = &[Fault::LayoutChange, Fault::Delay];

const UPHEAVAL: &[Fault] = &[
    Fault::LayoutChange,
    Fault::LayoutChange,
    Fault::LayoutChange,
    Fault::LayoutChange,
    Fault::Delay,
    Fault::LoseConnections,
    Fault::BlockOneWay,
    Fault::Isolate,
    Fault::Tangle,
    Fault::Crash,
    Fault::Crash,
    Fault::CrashWriter,
    Fault::Blackout,
    Fault::ClockJump,
    Fault::FailingDisk,
];

/// Machines that lose what they have, one after another.
const LOSSES: &[Fault] = &[
    Fault::Lose(Loss::Database),
    Fault::Lose(Loss::DatabaseSince),
    Fault::Lose(Loss::DatabaseSince),
    Fault::Lose(Loss::Data),
    Fault::Lose(Loss::Block),
    Fault::Lose(Loss::Block),
    Fault::Lose(Loss::Row),
    Fault::Lose(Loss::Row),
    Fault::Delay,
    Fault::Crash,
    Fault::FailingDisk,
];

/// Everything that a cluster can live through.
const EVERYTHING: &[Fault] = &[
    Fault::LayoutChange,
    Fault::LayoutChange,
    Fault::LayoutChange,
    Fault::Lose(Loss::Database),
    Fault::Lose(Loss::DatabaseSince),
    Fault::Lose(Loss::DatabaseSince),
    Fault::Lose(Loss::Data),
    Fault::Lose(Loss::Block),
    Fault::Lose(Loss::Block),
    Fault::Lose(Loss::Row),
    Fault::Lose(Loss::Row),
    Fault::Delay,
    Fault::LoseConnections,
    Fault::BlockOneWay,
    Fault::Isolate,
    Fault::Tangle,
    Fault::Crash,
    Fault::CrashWriter,
    Fault::CrashWriter,
    Fault::Blackout,
    Fault::ClockJump,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::FullDatabase,
    Fault::FailingDisk,
    Fault::FailingDisk,
    Fault::UnreadableDatabase,
];

/// Bytes of blocks in memory: more than ever needed, and hardly any.
const BLOCK_RAM: [usize; 2] = [1 << 20, 2 << 10];

/// What the scenarios start from.
const THREE: Scenario = Scenario {
    name: "calm",
    machines: 3,
    roles: 3,
    replication_factor: 3,
    consistency: ConsistencyMode::Consistent,
    clients: 4,
    operations: 50,
    keys: 5,
    mix: USUAL,
    faults: &[],
    frontend: Frontend::Store,
};

pub const SCENARIOS: [Scenario; 16] = [
    THREE,
    Scenario { name: "network", faults: NETWORK, ..THREE },
    Scenario { name: "everything", faults: ALL, ..THREE },
    Scenario { name: "crowd", operations: 70, keys: 1, mix: CROWD, faults: BREAKS, ..THREE },
    Scenario { name: "listing", operations: 25, keys: 40, mix: LISTING, faults: LAGGING, ..THREE },
    Scenario { name: "uploads", keys: 2, mix: UPLOADS, faults: ALL, ..THREE },
    Scenario { name: "five", machines: 5, roles: 5, clients: 5, operations: 40, faults: ALL, ..THREE },
    Scenario { name: "single", machines: 1, roles: 1, replication_factor: 1, clients: 3, faults: ALL, ..THREE },
    Scenario { name: "layouts", machines: 6, roles: 4, faults: LAYOUTS, ..THREE },
    Scenario { name: "upheaval", machines: 5, roles: 4, faults: UPHEAVAL, ..THREE },
    Scenario { name: "s3", operations: 45, faults: ALL, frontend: Frontend::S3, ..THREE },
    Scenario { name: "s3-calm", operations: 45, frontend: Frontend::S3, ..THREE },
    Scenario { name: "losses", machines: 4, roles: 4, faults: LOSSES, ..THREE },
    Scenario { name: "all", machines: 5, roles: 4, faults: EVERYTHING, ..THREE },
    Scenario { name: "degraded", consistency: ConsistencyMode::Degraded, faults: ALL, ..THREE },
    Scenario { name: "dangerous", consistency: ConsistencyMode::Dangerous, faults: NO_CLOCKS, ..THREE },
];

pub fn scenario(name: &str) -> Scenario {
    *SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap_or_else(|| panic!("there is no scenario {name}"))
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub trace: Vec<String>,
    pub tally: Tally,
}

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// Panics of tasks are caught by the runtime; a run must not miss them.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

/// What the machines of a run are made to get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    Planted(Bug),
    /// Blocks are acknowledged before they are on stable storage.
    BlocksNotSynced,
    /// Rows are.
    RowsNotSynced,
}

/// Runs a scenario by a seed, from an empty cluster to the last check.
pub fn run(scenario: Scenario, seed: u64) -> Outcome {
    run_flawed(scenario, seed, None)
}

/// As [`run`], with something wrong.
pub fn run_flawed(scenario: Scenario, seed: u64, flaw: Option<Flaw>) -> Outcome {
    in_simulation(flaw, run_in_runtime(scenario, seed, flaw))
}

/// Runs something in virtual time, with the bug of a flaw planted. A panic is a violation, of whatever task it is.
pub fn in_simulation(flaw: Option<Flaw>, run: impl Future<Output = Outcome>) -> Outcome {
    count_panics();
    plant(match flaw {
        Some(Flaw::Planted(bug)) => Some(bug),
        Some(Flaw::BlocksNotSynced | Flaw::RowsNotSynced) | None => None,
    });
    let panics_before = PANICS.get();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run)));
    drop(runtime);
    plant(None);
    let mut outcome = ended.unwrap_or_else(|_panic| Outcome {
        violations: Vec::new(),
        trace: Vec::new(),
        tally: Tally { acknowledged: 0, in_doubt: 0, reads: 0 },
    });
    if PANICS.get() > panics_before {
        outcome.violations.push("something panicked".to_owned());
    }
    outcome
}

/// How the machines of a run are set up.
pub fn setup_of(replication_factor: usize, flaw: Option<Flaw>) -> Setup {
    Setup {
        replication_factor,
        consistency: ConsistencyMode::Consistent,
        data_durability: match flaw {
            Some(Flaw::BlocksNotSynced) => garage_block::Durability::Unsynced,
            _ => garage_block::Durability::Synced,
        },
        metadata_durability: match flaw {
            Some(Flaw::RowsNotSynced) => garage_db::Durability::Unsynced,
            _ => garage_db::Durability::Synced,
        },
        sizes: Sizes::SMALL,
    }
}

/// A bucket in a cluster, and clients who will use some keys of it.
pub async fn world_of(cluster: Cluster, seed: u64, keys: usize, mix: Mix) -> Arc<World> {
    let bucket = cluster.machines[0].garage().expect("it runs").create_bucket(s3::work::BUCKET).await.unwrap();
    // The name and the bucket reach every machine before anybody works.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let world = Arc::new(World {
        cluster,
        bucket,
        history: History::new(),
        random: SeededRandom::new(seed ^ 0x636c_6965),
        keys,
        mix,
        usual_delay: Duration::from_millis([1, 5, 30, 120][(seed % 4) as usize]),
        writer: watch::Sender::new(0),
        uploads: Mutex::default(),
        losses: Losses::default(),
    });
    heal(&world).await;
    world
}

/// Judges what the clients saw.
pub fn outcome_of(world: &World) -> Outcome {
    let history = &world.history;
    if history.tally().acknowledged == 0 {
        history.violation("not one write was acknowledged");
    }
    history.note(world.cluster.network.summary());
    history.judge();
    Outcome { violations: history.violations(), trace: history.trace(), tally: history.tally() }
}

async fn run_in_runtime(scenario: Scenario, seed: u64, flaw: Option<Flaw>) -> Outcome {
    let mut setup = setup_of(scenario.replication_factor, flaw);
    setup.sizes.buffer_max = BLOCK_RAM[(seed % 2) as usize];
    setup.consistency = scenario.consistency;
    let cluster = Cluster::start(seed, scenario.machines, scenario.roles, setup).await;
    let world = world_of(cluster, seed, scenario.keys, scenario.mix).await;
    if scenario.consistency != ConsistencyMode::Consistent {
        world.history.reads_promise_nothing_until_told();
    }
    let s3 = match scenario.frontend {
        Frontend::Store => None,
        Frontend::S3 => Some(s3::work::Work::start(world.clone()).await),
    };
    let faults = (!scenario.faults.is_empty()).then(|| {
        let random = Arc::new(SeededRandom::new(seed ^ 0x6661_756c));
        tokio::spawn(make_faults(world.clone(), scenario.faults, random))
    });
    let client = |number| match &s3 {
        Some(s3) if number > 0 => tokio::spawn(s3.clone().client(number, scenario.operations)),
        _ => tokio::spawn(world.clone().client(number, scenario.operations)),
    };
    let watch = tokio::spawn(checks::watch_memory(world.clone()));
    let clients: Vec<_> = (0..scenario.clients).map(client).collect();
    for client in clients {
        client.await.unwrap();
    }
    if let Some(faults) = faults {
        faults.abort();
        // It has ended when it is not in the middle of a restart any more.
        drop(faults.await);
    }
    watch.abort();
    heal(&world).await;
    if let Some(s3) = s3 {
        s3.end().await;
    }
    checks::after_quiet(&world, ABILITIES).await;
    let releases_all = ABILITIES.anti_entropy && ABILITIES.doubtful_uploads_end;
    if releases_all || scenario.faults.is_empty() && world.history.tally().in_doubt == 0 {
        checks::after_deleting_all(&world).await;
    }
    if scenario.faults.is_empty() && world.history.tally().in_doubt > 0 {
        world.history.note("operations failed although nothing went wrong");
    }
    outcome_of(&world)
}
