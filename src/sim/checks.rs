//! What must be true once all faults are healed and some time has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use garage_db::Direction;
use garage_model::alias::AliasTable;
use garage_model::block_ref::{BlockRefRow, BlockRefTable, RefCount};
use garage_model::bucket::BucketTable;
use garage_model::counters::{Counts, unseal};
use garage_model::object::{ObjectRow, ObjectTable};
use garage_model::part::{PartEntry, PartTable};
use garage_model::resync_queue::Queued;
use garage_model::upload::{UploadRow, UploadState, UploadTable};
use garage_model::version::VersionTable;
use garage_table::digest::SetDigest;
use garage_table::segments::KeyRange;
use garage_table::{Replication, Schema};
use garage_types::{BlockHash, Clock, NodeId, Placement, VersionId};

use crate::cluster::machine::Machine;
use crate::layouts;
use crate::losses;
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

/// Between two looks at the memory of all machines.
const LOOK_PERIOD: Duration = Duration::from_millis(40);

/// While everybody works, no machine has more blocks in memory than it may. Never ends.
pub async fn watch_memory(world: Arc<World>) {
    loop {
        for machine in &world.cluster.machines {
            let Some(memory) = machine.garage().map(|garage| garage.block_memory()) else { continue };
            // One block has room whatever its size.
            if memory.in_flight > memory.in_flight_max || memory.lingering > memory.lingering_max.max(BLOCK_SIZE) {
                world.history.violation(format!("machine {} has too many blocks in memory: {memory:?}", machine.number));
            }
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Nothing is on its way any more, and all room was given back.
fn memory_is_free(world: &World, machine: &Machine) {
    let memory = machine.garage().expect("the machine runs").block_memory();
    if (memory.in_flight, memory.lingering) != (0, 0) {
        world.history.violation(format!("machine {}: room for blocks was not given back: {memory:?}", machine.number));
    }
}

/// Waits until the cluster is at rest, then reads everything through every machine and looks at what each of them has.
pub async fn after_quiet(world: &World, abilities: Abilities) {
    world.cluster.until("all machines are connected again", |cluster| cluster.is_connected()).await;
    layouts::settle(world).await;
    losses::regain(world).await;
    // Past the delay of every deletion; time itself passes only as far as it must.
    world.cluster.machines.iter().for_each(|machine| machine.clock.set_off_by_ms(2 * 3_600_000));
    // Now rather than within the hour.
    world.cluster.machines.iter().filter_map(|machine| machine.node()).for_each(|node| node.sync.request());
    tokio::time::sleep(QUIET).await;
    world.history.reads_promise_all();
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
        memory_is_free(world, machine);
        counters_agree(world, machine).await;
        no_temporary_files(world, machine);
        files_are_known(world, machine).await;
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

/// Every block file is counted by a reference, or waits to be looked at.
async fn files_are_known(world: &World, machine: &Machine) {
    let local = machine.garage().expect("the machine runs").local().clone();
    let (counts, resync) = (local.block_trees.counts, local.block_trees.resync);
    let read = move |tx: &garage_db::Snapshot<'_>| {
        let mut known = BTreeSet::new();
        let all = (Bound::Unbounded, Bound::Unbounded);
        tx.range(counts, all, Direction::Forward, &mut |key, count| {
            known.extend(BlockHash::from_slice(key).filter(|_| RefCount::decode(count).is_some_and(|count| count.count > 0)));
            ControlFlow::Continue(())
        })?;
        // Behind the time at which it is due.
        tx.range(resync, all, Direction::Forward, &mut |key, _reason| {
            known.extend(key.get(8..).and_then(BlockHash::from_slice));
            ControlFlow::Continue(())
        })?;
        Ok::<_, garage_db::DbError>(known)
    };
    let known: BTreeSet<BlockHash> = local.tables.db().read(read).await.unwrap();
    for (block, path) in losses::block_files(machine).into_iter().filter(|(block, _path)| !known.contains(block)) {
        let number = machine.number;
        world.history.violation(format!("machine {number}: the file {path:?} of block {block} is counted by nothing"));
    }
}

/// A machine's counters are those of its own rows.
async fn counters_agree(world: &World, machine: &Machine) {
    let objects = rows::<ObjectTable>(machine).await;
    let live = objects.iter().filter(|row| row.bucket == world.bucket).filter_map(ObjectRow::live);
    let (count, bytes) = live.fold((0, 0), |(count, bytes), meta| (count + 1, bytes + meta.size as i64));
    let open = |row: &UploadRow| matches!(row.state, UploadState::Simple(_) | UploadState::Multipart(_));
    let uploads = rows::<UploadTable>(machine).await.iter().filter(|row| row.bucket == world.bucket && open(row)).count() as i64;
    let local = machine.garage().expect("the machine runs").local().clone();
    let (tree, bucket) = (local.counters.0, world.bucket);
    let read = move |tx: &garage_db::Snapshot<'_>| tx.get(tree, bucket.as_bytes());
    let stored: Result<Option<Vec<u8>>, garage_db::DbError> = local.tables.db().read(read).await;
    let whole = |bytes: Vec<u8>| unseal(bucket.as_bytes(), &bytes).expect("counters match their checksum");
    let counts = stored.unwrap().map_or_else(Counts::default, whole);
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
    if !differences(world).await.is_empty() {
        // A tombstone that is being collected goes from one owner after another.
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    for difference in differences(world).await {
        world.history.violation(difference);
    }
}

async fn differences(world: &World) -> Vec<String> {
    let mut found = unequal_rows::<ObjectTable>(world).await;
    found.extend(unequal_rows::<UploadTable>(world).await);
    found.extend(unequal_rows::<PartTable>(world).await);
    found.extend(unequal_rows::<VersionTable>(world).await);
    found.extend(unequal_rows::<BlockRefTable>(world).await);
    found.extend(unequal_rows::<BucketTable>(world).await);
    found.extend(unequal_rows::<AliasTable>(world).await);
    found.extend(unequal_digests(world).await);
    found
}

fn numbers_of(world: &World, nodes: &[NodeId]) -> BTreeSet<usize> {
    world.cluster.machines.iter().filter(|machine| nodes.contains(&machine.id)).map(|machine| machine.number).collect()
}

/// Rows that are not on all their owners or, in a sharded table, somewhere else.
async fn unequal_rows<S: Schema>(world: &World) -> Vec<String>
where
    S::Row: Debug,
{
    let layout = world.cluster.machines[0].garage().expect("the machine runs").cluster().layout();
    let members = layout.all_nodes();
    let mut seen: BTreeMap<String, (Placement, BTreeSet<usize>)> = BTreeMap::new();
    for machine in &world.cluster.machines {
        // What a machine without a role keeps of a full-copy table is never read.
        if S::REPLICATION == Replication::FullCopy && !members.contains(&machine.id) {
            continue;
        }
        for row in rows::<S>(machine).await {
            seen.entry(format!("{row:?}")).or_insert((S::placement(&row), BTreeSet::new())).1.insert(machine.number);
        }
    }
    let mut found = Vec::new();
    for (row, (placement, machines)) in seen {
        let owners = match S::REPLICATION {
            Replication::Sharded => layout.read_nodes(placement),
            Replication::FullCopy => members,
        };
        let owners = numbers_of(world, owners);
        if machines != owners {
            found.push(format!("of the owners {owners:?}, the machines {machines:?} have the {} row {row}", S::NAME));
        }
    }
    found
}

/// Partitions of which the digests, by which owners compare their rows, are not equal.
async fn unequal_digests(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let machines = &world.cluster.machines;
    let layout = machines[0].garage().expect("the machine runs").cluster().layout();
    let ranges: Vec<KeyRange> =
        (0..=u8::MAX).map(|first| KeyRange { from: vec![first], to: first.checked_add(1).map(|next| vec![next]) }).collect();
    let tables = machines[0].garage().expect("the machine runs").local().tables.tables();
    for (table, _) in tables.into_iter().filter(|(_, replication)| *replication == Replication::Sharded) {
        let mut digests = BTreeMap::new();
        for machine in machines {
            let store = machine.garage().expect("the machine runs").local().tables.clone();
            digests.insert(machine.number, store.range_digests(table, ranges.clone()).await.unwrap());
        }
        for first in 0..=u8::MAX {
            let mut placement = [0; 32];
            placement[0] = first;
            let owners = numbers_of(world, layout.read_nodes(Placement::from_bytes(placement)));
            let of = |machine: usize| digests[&machine][usize::from(first)];
            let theirs: Vec<SetDigest> = owners.iter().map(|machine| of(*machine)).collect();
            let others = machines.iter().filter(|machine| !owners.contains(&machine.number));
            if theirs.windows(2).any(|two| two[0] != two[1]) {
                found.push(format!("owners {owners:?} of {table:?} {first:02x}: {theirs:?}"));
            }
            for other in others.filter(|other| of(other.number) != SetDigest::default()) {
                let digest = of(other.number);
                found.push(format!("machine {} owns no {table:?} {first:02x}, but has {digest:?}", other.number));
            }
        }
    }
    found
}

/// Deletes everything, and looks for what is left of it.
pub async fn after_deleting_all(world: &World) {
    let machine = &world.cluster.machines[0];
    for key in world.used_keys() {
        world.delete("the end", machine, key).await;
    }
    world.abort_all(machine).await;
    tokio::time::sleep(QUIET).await;
    // What was not settled when it was looked at first is looked at again, and what follows from that is, too.
    for hours in [4, 8, 12] {
        world.cluster.machines.iter().for_each(|machine| machine.clock.set_off_by_ms(hours * 3_600_000));
        tokio::time::sleep(QUIET).await;
    }
    for machine in &world.cluster.machines {
        queue_is_empty(world, machine).await;
        let live: Vec<BlockRefRow> = rows::<BlockRefTable>(machine).await.into_iter().filter(|row| !row.deleted).collect();
        if !live.is_empty() {
            let count = live.len();
            let known = rows_about(machine, live[0].version).await;
            let number = machine.number;
            world.history.violation(format!("machine {number}: {count} references that nothing needs: {:?}; {known:?}", live[0]));
        }
        let files = losses::block_files(machine);
        if let Some((block, path)) = files.first() {
            let (count, number) = (files.len(), machine.number);
            let known = known_of_block(machine, *block).await;
            world
                .history
                .violation(format!("machine {number}: {count} block files that nothing needs: {block} in {path:?}; {known:?}"));
        }
    }
}

/// What a machine knows of a block: how often it is counted, when it is looked at and why, and what refers to it.
async fn known_of_block(machine: &Machine, block: BlockHash) -> Vec<String> {
    let local = machine.garage().expect("the machine runs").local().clone();
    let (counts, resync) = (local.block_trees.counts, local.block_trees.resync);
    let read = move |tx: &garage_db::Snapshot<'_>| {
        let count = tx.get(counts, block.as_bytes())?.and_then(|count: Vec<u8>| RefCount::decode(&count));
        let mut known = vec![format!("{count:?}")];
        tx.range(resync, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, reason| {
            let queued = Queued::decode(key, reason).filter(|queued| queued.block == block);
            known.extend(queued.map(|queued| format!("{queued:?}")));
            ControlFlow::Continue(())
        })?;
        Ok::<_, garage_db::DbError>(known)
    };
    let mut known = local.tables.db().read(read).await.unwrap();
    known.push(format!("now {:?}", machine.clock.now()));
    let references = rows::<BlockRefTable>(machine).await.into_iter().filter(|row| row.block == block);
    known.extend(references.map(|row| format!("{} of {}", if row.deleted { "released" } else { "live" }, row.version)));
    known
}

/// What a machine knows of a version and of the upload that it is a part of.
async fn rows_about(machine: &Machine, version: VersionId) -> Vec<String> {
    let parts = rows::<PartTable>(machine).await;
    let upload = parts.iter().find_map(|row| match &row.entry {
        PartEntry::Attempt(attempt) if attempt.version == version => Some(row.upload.short()),
        PartEntry::Attempt(_) | PartEntry::Ended(_) => None,
    });
    let names: Vec<String> = std::iter::once(version.short()).chain(upload).collect();
    let mut found: Vec<String> = parts.iter().map(|row| format!("{row:?}")).collect();
    found.extend(rows::<UploadTable>(machine).await.iter().map(|row| format!("{row:?}")));
    found.extend(rows::<VersionTable>(machine).await.iter().map(|row| format!("{row:?}")));
    found.extend(rows::<ObjectTable>(machine).await.iter().map(|row| format!("{row:?}")));
    found.retain(|row| names.iter().any(|name| row.contains(name)));
    found
}
