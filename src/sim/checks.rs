//! What must be true once all faults are healed and some time has passed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use garage_model::block_ref::{BlockRefRow, BlockRefTable};
use garage_model::counters::Counts;
use garage_model::object::{ObjectRow, ObjectTable};
use garage_model::upload::{UploadRow, UploadState, UploadTable};
use garage_table::Schema;
use garage_types::BlockHash;

use crate::cluster::machine::Machine;
use crate::scenario::Abilities;
use crate::workload::World;
use crate::world::{BLOCK_SIZE, INLINE_MAX};

/// For the mesh to come back, queues to empty and time-outs to pass.
const QUIET: Duration = Duration::from_secs(90);

/// All rows that a machine has of a table.
pub async fn rows<S: Schema>(machine: &Machine) -> Vec<S::Row> {
    let tables = machine.garage().expect("the machine runs").local().tables.clone();
    let rows = Arc::new(Mutex::new(Vec::new()));
    let collected = rows.clone();
    tables.scan::<S>(None, usize::MAX, move |row| collected.lock().unwrap().push(row)).await.unwrap();
    std::mem::take(&mut *rows.lock().unwrap())
}

/// Waits until the cluster is at rest, then reads everything through every machine and looks at what each of them has.
pub async fn after_quiet(world: &World, abilities: Abilities) {
    world.cluster.until("all machines are connected again", |cluster| cluster.is_connected()).await;
    // Past the delay of every deletion; time itself passes only as far as it must.
    world.cluster.machines.iter().for_each(|machine| machine.clock.set_off_by_ms(2 * 3_600_000));
    // Now rather than within the hour.
    world.cluster.machines.iter().filter_map(|machine| machine.node()).for_each(|node| node.sync.request());
    tokio::time::sleep(QUIET).await;
    for machine in &world.cluster.machines {
        let name = format!("final look on {}", machine.number);
        for key in world.used_keys() {
            if let Err(error) = world.try_get(&name, machine, key).await {
                world.history.violation(format!("{name}: {key} cannot be read: {error}"));
            }
        }
        if let Err(error) = world.try_list(&name, machine, 2).await {
            world.history.violation(format!("{name}: the bucket cannot be listed: {error}"));
        }
    }
    // What was read back may have released something.
    tokio::time::sleep(Duration::from_secs(30)).await;
    for machine in &world.cluster.machines {
        queue_is_empty(world, machine).await;
        counters_agree(world, machine).await;
        no_temporary_files(world, machine);
    }
    blocks_are_held(world, abilities).await;
    if abilities.anti_entropy {
        replicas_are_equal(world).await;
    }
}

async fn queue_is_empty(world: &World, machine: &Machine) {
    let tables = machine.garage().expect("the machine runs").local().tables.clone();
    let waiting = tables.queue_len().await.unwrap();
    if waiting > 0 {
        let items = tables.queue_peek(None, 3).await.unwrap();
        world.history.violation(format!("machine {}: {waiting} queued deletions were never sent: {items:?}", machine.number));
    }
}

/// Whatever broke off, no block that was only begun lies around.
fn no_temporary_files(world: &World, machine: &Machine) {
    let files = machine.disk.files();
    let left: Vec<_> = files.iter().filter(|path| path.components().any(|part| part.as_os_str() == "tmp")).collect();
    if !left.is_empty() {
        world.history.violation(format!("machine {}: temporary files are left: {left:?}", machine.number));
    }
}

/// A machine's counters are those of its own rows.
async fn counters_agree(world: &World, machine: &Machine) {
    let objects = rows::<ObjectTable>(machine).await;
    let live = objects.iter().filter_map(ObjectRow::live);
    let (count, bytes) = live.fold((0, 0), |(count, bytes), meta| (count + 1, bytes + meta.size as i64));
    let open = |row: &UploadRow| matches!(row.state, UploadState::Simple(_) | UploadState::Multipart(_));
    let uploads = rows::<UploadTable>(machine).await.iter().filter(|row| open(row)).count() as i64;
    let local = machine.garage().expect("the machine runs").local().clone();
    let (tree, bucket) = (local.counters.0, world.bucket);
    let read = move |tx: &garage_db::Snapshot<'_>| tx.get(tree, bucket.as_bytes());
    let stored: Result<Option<Vec<u8>>, garage_db::DbError> = local.tables.db().read(read).await;
    let counts = stored.unwrap().map_or_else(Counts::default, |bytes| Counts::decode(&bytes));
    if (counts.objects, counts.bytes, counts.uploads) != (count, bytes, uploads) {
        world.history.violation(format!(
            "machine {}: counted {counts:?}, but there are {count} objects of {bytes} bytes and {uploads} uploads",
            machine.number
        ));
    }
}

/// The blocks of every current object are on enough machines: a write quorum of them, and all once missing ones are fetched.
async fn blocks_are_held(world: &World, abilities: Abilities) {
    let machines = &world.cluster.machines;
    let cluster = machines[0].garage().expect("the machine runs").cluster().clone();
    for key in world.used_keys() {
        let Ok(Some(object)) = world.look("blocks", &machines[0], key).await else { continue };
        let write = crate::history::write_of(&object.meta);
        let Some(body) = write.and_then(|write| world.history.body(write)) else { continue };
        if body.len() <= INLINE_MAX {
            continue;
        }
        for chunk in body.chunks(BLOCK_SIZE) {
            let block = BlockHash::of(chunk);
            let owners = cluster.layout().read_nodes(block.into()).to_vec();
            let mut holders = 0;
            for machine in machines.iter().filter(|machine| owners.contains(&machine.id)) {
                let blocks = machine.garage().expect("the machine runs").local().blocks.blocks.clone();
                holders += usize::from(blocks.read(block).await.is_ok_and(|bytes| bytes == chunk));
            }
            let promised = if abilities.block_resync { owners.len() } else { cluster.quorums().write };
            if holders < promised {
                world.history.violation(format!("{key} = {write:?}: block {block} is on {holders} of {} owners", owners.len()));
            }
        }
    }
}

async fn replicas_are_equal(world: &World) {
    let layout = world.cluster.machines[0].garage().expect("the machine runs").cluster().layout();
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for machine in &world.cluster.machines {
        let mut add = |placement: garage_types::Placement, row: String| {
            owners.insert(row.clone(), layout.read_nodes(placement).len());
            seen.entry(row).or_default().push(machine.number);
        };
        for row in rows::<ObjectTable>(machine).await {
            add(ObjectTable::placement(&row), format!("{row:?}"));
        }
        for row in rows::<UploadTable>(machine).await {
            add(UploadTable::placement(&row), format!("{row:?}"));
        }
        for row in rows::<BlockRefTable>(machine).await {
            add(BlockRefTable::placement(&row), format!("{row:?}"));
        }
    }
    for (row, machines) in seen {
        if machines.len() != owners[&row] {
            world.history.violation(format!("only the machines {machines:?} have the row {row}"));
        }
    }
}

/// Deletes everything, and looks for what is left of it.
pub async fn after_deleting_all(world: &World) {
    let machine = &world.cluster.machines[0];
    for key in world.used_keys() {
        world.delete("the end", machine, key).await;
    }
    world.abort_all(machine).await;
    tokio::time::sleep(QUIET).await;
    for machine in &world.cluster.machines {
        queue_is_empty(world, machine).await;
        let live: Vec<BlockRefRow> = rows::<BlockRefTable>(machine).await.into_iter().filter(|row| !row.deleted).collect();
        if !live.is_empty() {
            let count = live.len();
            world.history.violation(format!("machine {}: {count} references that nothing needs: {:?}", machine.number, live[0]));
        }
    }
}
