//! What a machine loses and gets back from the others: its database, its blocks, or one block.
//!
//! That it gets it back is promised while everybody else is whole. So nothing is taken from one machine before all have again what an
//! earlier loss took, and never the last good copy of a block.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use garage_block::{MARKER, file};
use garage_db::MemoryEngine;
use garage_model::repair::Repair;
use garage_model::scrub::ScrubError;
use garage_rpc::layout::Standing;
use garage_types::disk::{Access, Disk};
use garage_types::random::SeededRandom;
use garage_types::{BlockHash, Random};

use crate::cluster::machine::{Machine, data_dir};
use crate::faults::death;
use crate::workload::World;

/// How long an operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for what was lost to be back, once nothing stands in its way.
const REGAIN_MAX: Duration = Duration::from_secs(1_800);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The machine comes back with an empty database.
    Database,
    /// It comes back with the database it had a while ago.
    DatabaseSince,
    /// It comes back without its blocks; its operator says that the directory is meant to be empty, and orders a repair.
    Data,
    /// A byte of one stored block changes, its file is cut short, or it lies on a bad sector: no read of it ever succeeds.
    Block,
    /// A bit of one stored row changes.
    Row,
}

/// What operators know.
#[derive(Default)]
pub struct Losses {
    snapshots: Mutex<BTreeMap<usize, MemoryEngine>>,
    /// Machines without their blocks on which the repair was not ordered yet.
    to_repair: Mutex<BTreeSet<usize>>,
    /// Machines with a changed row that was not seen to be repaired yet.
    flipped: Mutex<BTreeSet<usize>>,
    /// Machines of which a stored block was damaged, which only a scrub finds.
    damaged: Mutex<BTreeSet<usize>>,
    /// Whether a machine lost its database, and with it what it alone knew to be released.
    lost_queue: AtomicBool,
}

/// Takes something from a machine, if the others can replace it now.
pub async fn lose(world: &World, loss: Loss, random: &SeededRandom) {
    let machines = &world.cluster.machines;
    let machine = &machines[random.below(machines.len() as u64) as usize];
    // What is lost, and what is left elsewhere, is looked up on the disks.
    machines.iter().for_each(|machine| machine.end_disk_errors());
    order_repairs(world).await;
    check_rows(world).await;
    if loss == Loss::DatabaseSince && !lock(&world.losses.snapshots).contains_key(&machine.number) {
        world.history.note(format!("snapshot of machine {}", machine.number));
        if let Some(snapshot) = machine.snapshot().await {
            lock(&world.losses.snapshots).insert(machine.number, snapshot);
        }
        return;
    }
    if let Err(reason) = all_are_whole(world) {
        return world.history.note(format!("no {loss:?} of machine {} is lost now: {reason}", machine.number));
    }
    match loss {
        Loss::Database => {
            let empty = MemoryEngine::new();
            come_back_with(world, machine, &empty, loss, random).await;
        }
        Loss::DatabaseSince => {
            let Some(snapshot) = lock(&world.losses.snapshots).remove(&machine.number) else { return };
            come_back_with(world, machine, &snapshot, loss, random).await;
        }
        Loss::Data => {
            let files = block_files(machine);
            if !files.iter().all(|(block, _path)| has_another(world, machine, *block)) {
                return world.history.note(format!("machine {} has blocks that no other has", machine.number));
            }
            world.history.note(format!("FAULT {loss:?} of machine {}: {} blocks", machine.number, files.len()));
            machine.crash(death(random));
            empty_directory(machine);
            lock(&world.losses.to_repair).insert(machine.number);
            tokio::time::sleep(Duration::from_millis(random.below(2_000))).await;
            machine.restart().await;
            order_repairs(world).await;
        }
        Loss::Block => {
            let files = block_files(machine);
            let Some((block, path)) = files.get(random.below(files.len().max(1) as u64) as usize) else { return };
            if has_another(world, machine, *block) {
                world.history.note(format!("FAULT {loss:?} {block} of machine {}", machine.number));
                damage(machine, path, random);
                lock(&world.losses.damaged).insert(machine.number);
            }
        }
        Loss::Row => flip_row(world, machine, random),
    }
}

/// Changes a bit of some row of a table, or of some that lie beside each other, as where a page has rotted.
fn flip_row(world: &World, machine: &Machine, random: &SeededRandom) {
    let Some(garage) = machine.garage() else { return };
    let tables = garage.local().tables.clone();
    let names: Vec<&str> = tables.tables().into_iter().filter_map(|(table, _)| tables.name_of(table)).collect();
    let name = names[random.below(names.len() as u64) as usize];
    let (row, bit) = (random.below(1 << 20) as usize, random.below(1 << 20) as usize);
    for beside in 0..=row % 3 {
        if let Some(key) = machine.engine.flip_bit(&format!("{name}:rows"), row + beside, bit) {
            world.history.note(format!("FAULT a bit of row {} of {name} on machine {}", key.escape_ascii(), machine.number));
            lock(&world.losses.flipped).insert(machine.number);
        }
    }
}

/// Has machines with a changed row check all rows, as a scrub does, as far as they can be told now.
async fn check_rows(world: &World) {
    let waiting = lock(&world.losses.flipped).clone();
    for number in waiting {
        let check = |garage: garage_model::Garage| async move {
            let tables = garage.local().tables.clone();
            let mut next = None;
            loop {
                next = tables.check_some_rows(next).await?.next;
                if next.is_none() {
                    return Ok::<_, garage_table::TableError>(tables.damaged_rows());
                }
            }
        };
        let damaged = world.cluster.machines[number].run(PATIENCE, check).await;
        world.history.note(format!("check of the rows on machine {number} -> {damaged:?}"));
        if matches!(damaged, Ok(Ok(0))) {
            lock(&world.losses.flipped).remove(&number);
        }
    }
}

/// Everything in the data directory is gone for good, as when another disk takes its place; the operator writes the marker.
fn empty_directory(machine: &Machine) {
    let lost = machine.disk.files().into_iter().filter(|path| path.starts_with(data_dir()) && !path.ends_with(MARKER));
    for path in lost {
        machine.disk.remove_file(&path).unwrap();
        machine.disk.sync_directory(path.parent().unwrap()).unwrap();
    }
}

/// Changes a byte, spoils the sector below it, or cuts the file short.
fn damage(machine: &Machine, path: &Path, random: &SeededRandom) {
    // It lies on a bad sector already.
    let Ok(content) = machine.disk.read(path) else { return };
    let byte = random.below(content.len().max(1) as u64) as usize;
    match random.below(3) {
        0 => {}
        1 => return machine.disk.flip_bit(path, byte),
        _ => return machine.disk.spoil(path),
    }
    machine.disk.remove_file(path).unwrap();
    // A full disk does not keep a file from being cut.
    machine.disk.set_capacity(None);
    machine.disk.create(path, &[&content[..byte]], Access::Everyone).unwrap();
    machine.disk.sync_file(path).unwrap();
    machine.disk.sync_directory(path.parent().unwrap()).unwrap();
}

async fn come_back_with(world: &World, machine: &Machine, engine: &MemoryEngine, loss: Loss, random: &SeededRandom) {
    world.losses.lost_queue.store(true, Ordering::Release);
    world.history.note(format!("FAULT {loss:?} of machine {}", machine.number));
    machine.crash(death(random));
    machine.put_back(engine);
    tokio::time::sleep(Duration::from_millis(random.below(2_000))).await;
    machine.restart().await;
}

/// Whether nothing is missing that an earlier loss took; of blocks, this is asked one by one.
fn all_are_whole(world: &World) -> Result<(), String> {
    if !lock(&world.losses.to_repair).is_empty() {
        return Err("a repair is yet to be ordered".to_owned());
    }
    if !lock(&world.losses.flipped).is_empty() {
        return Err("a changed row is yet to be repaired".to_owned());
    }
    for machine in &world.cluster.machines {
        match machine.node().map(|node| node.layout.standing().get()) {
            Some(Standing::Whole | Standing::Fresh) => {}
            other => return Err(format!("machine {}: {other:?}", machine.number)),
        }
    }
    Ok(())
}

/// A machine's block files.
pub fn block_files(machine: &Machine) -> Vec<(BlockHash, PathBuf)> {
    let block = |path: &PathBuf| path.file_name()?.to_str()?.parse::<BlockHash>().ok();
    machine.disk.files().into_iter().filter_map(|path| Some((block(&path)?, path))).collect()
}

/// Whether what a file holds is the block's content.
fn is_good(machine: &Machine, block: BlockHash, path: &Path) -> bool {
    let content = machine.disk.read(path);
    content.is_ok_and(|content| file::decode(content.into(), block).is_ok_and(|stored| stored.verify(block).is_ok()))
}

/// Whether another machine has a good copy of the block.
fn has_another(world: &World, machine: &Machine, block: BlockHash) -> bool {
    let others = world.cluster.machines.iter().filter(|other| other.number != machine.number);
    others.into_iter().any(|other| block_files(other).iter().any(|(hash, path)| *hash == block && is_good(other, block, path)))
}

/// Orders the repair of machines that came back without their blocks, as far as they can be told now.
pub async fn order_repairs(world: &World) {
    let waiting = lock(&world.losses.to_repair).clone();
    for number in waiting {
        let machine = &world.cluster.machines[number];
        let ordered = machine.run(PATIENCE, |garage| async move { garage.queue_misplaced_blocks().await }).await;
        world.history.note(format!("repair of the blocks on machine {number} -> {ordered:?}"));
        if matches!(ordered, Ok(Ok(_queued))) {
            lock(&world.losses.to_repair).remove(&number);
        }
    }
}

/// Has machines with damaged blocks look through all they have, and waits until all databases are rebuilt; that one never is, is a
/// violation. No other machine is scrubbed: a scrub also finds files that should have been found without it.
pub async fn regain(world: &World) {
    order_repairs(world).await;
    check_rows(world).await;
    let regaining = async {
        while let Err(reason) = all_are_whole(world) {
            world.history.note(format!("not all is regained: {reason}"));
            order_repairs(world).await;
            check_rows(world).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    };
    if tokio::time::timeout(REGAIN_MAX, regaining).await.is_err() {
        world.history.violation("what was lost never came back");
    }
    let damaged = std::mem::take(&mut *lock(&world.losses.damaged));
    if let Some(number) = damaged.first() {
        spoil_disk(world, &world.cluster.machines[*number]);
    }
    for machine in damaged.into_iter().map(|number| &world.cluster.machines[number]) {
        let scrub =
            |garage: garage_model::Garage| async move { garage.command_scrub(garage_block::scrub::ScrubCommand::Start).await };
        match machine.run(PATIENCE, scrub).await {
            Ok(Ok(()) | Err(ScrubError::Refused(_))) => {}
            other => world.history.violation(format!("machine {} cannot be scrubbed: {other:?}", machine.number)),
        }
    }
    if world.losses.lost_queue.swap(false, Ordering::AcqRel) {
        repair_versions(world).await;
    }
}

/// A machine's disk goes bad, file by file: what was damaged while clients worked is mostly overwritten by now.
fn spoil_disk(world: &World, machine: &Machine) {
    machine.end_disk_errors();
    for (block, path) in block_files(machine).into_iter().filter(|(block, _path)| has_another(world, machine, *block)) {
        world.history.note(format!("FAULT bad sectors below {block} of machine {}", machine.number));
        machine.disk.spoil(&path);
    }
}

/// As operators are told to after a database was lost: an owner that alone ignored a row, because of a newer one, alone knew that its
/// content has to be released.
async fn repair_versions(world: &World) {
    for machine in &world.cluster.machines {
        let repair = |garage: garage_model::Garage| async move { garage.start_repair(Repair::Versions) };
        let started = machine.run(PATIENCE, repair).await;
        world.history.note(format!("repair of the versions on machine {} -> {:?}", machine.number, started.is_ok()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
