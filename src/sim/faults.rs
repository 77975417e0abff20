//! What goes wrong: faults drawn from a seed, each held for a while and then healed.

use std::sync::Arc;
use std::time::Duration;

use garage_types::Random;
use garage_types::memory_disk::FailingCall;
use garage_types::random::SeededRandom;

use crate::cluster::machine::Machine;
use crate::cluster::network::Death;
use crate::layouts;
use crate::losses::{self, Loss};
use crate::workload::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Everything takes longer on the network.
    Delay,
    /// The connections between two machines are reset.
    LoseConnections,
    /// What one machine sends to another does not arrive.
    BlockOneWay,
    /// One machine is cut off from all others.
    Isolate,
    /// Of every two machines, either may be unable to reach the other.
    Tangle,
    /// A machine loses what was not synced, and comes back.
    Crash,
    /// A machine dies in the middle of a write that a client asked of it, and is back at once.
    CrashWriter,
    /// All machines lose power at once.
    Blackout,
    /// A machine's clock is up to an hour off.
    ClockJump,
    SlowDisk,
    /// A machine can store no more blocks.
    FullDisk,
    /// A machine's next commits to its database fail.
    FullDatabase,
    /// One kind of call on a machine's files answers an error of the operating system.
    FailingDisk,
    /// A machine cannot read its database.
    UnreadableDatabase,
    /// An operator changes the layout; nothing heals that.
    LayoutChange,
    /// A machine loses something that the others have too.
    Lose(Loss),
}

/// Makes faults for as long as it is polled.
pub async fn make_faults(world: Arc<World>, faults: &'static [Fault], random: Arc<SeededRandom>) {
    loop {
        let pause = Duration::from_millis(50 + random.below(1_200));
        tokio::time::sleep(pause).await;
        let fault = faults[random.below(faults.len() as u64) as usize];
        match fault {
            Fault::CrashWriter => {
                crash_writer(&world, &random).await;
                continue;
            }
            Fault::LayoutChange => {
                layouts::change(&world, &random).await;
                continue;
            }
            Fault::Lose(loss) => {
                losses::lose(&world, loss, &random).await;
                continue;
            }
            _held => {}
        }
        begin(&world, fault, &random);
        let held = Duration::from_millis(if random.below(5) == 0 { random.below(25_000) } else { random.below(1_500) });
        tokio::time::sleep(held).await;
        // Now and then the next fault comes on top.
        if random.below(4) > 0 {
            heal(&world).await;
        }
    }
}

fn begin(world: &World, fault: Fault, random: &SeededRandom) {
    let machines = &world.cluster.machines;
    let one = &machines[random.below(machines.len() as u64) as usize];
    let other = &machines[random.below(machines.len() as u64) as usize];
    world.history.note(format!("FAULT {fault:?} machine {} ({})", one.number, other.number));
    let network = &world.cluster.network;
    match fault {
        Fault::Delay => network.set_delay_max(Duration::from_millis(20 + random.below(1_500))),
        Fault::LoseConnections => network.lose_connections(one.number, other.number),
        Fault::BlockOneWay => network.block(one.number, other.number),
        Fault::Isolate => {
            for machine in machines.iter().filter(|machine| machine.number != one.number) {
                network.block(one.number, machine.number);
                network.block(machine.number, one.number);
            }
        }
        Fault::Tangle => {
            for from in machines {
                for to in machines.iter().filter(|to| to.number != from.number) {
                    if random.below(2) == 0 {
                        network.block(from.number, to.number);
                    }
                }
            }
        }
        Fault::Crash => one.crash(death(random)),
        // Not begun here: they take their time.
        Fault::CrashWriter | Fault::LayoutChange | Fault::Lose(_) => {}
        Fault::Blackout => machines.iter().for_each(|machine| machine.crash(Death::Reset)),
        Fault::ClockJump => {
            let off_by_ms = [0, 3_600_000, -3_600_000, 700, -700][random.below(5) as usize];
            world.history.note(format!("clock off by {off_by_ms} ms"));
            one.clock.set_off_by_ms(off_by_ms);
        }
        Fault::SlowDisk => one.set_disk_delay_max(Duration::from_millis(10 + random.below(3_000))),
        Fault::FullDisk => one.disk.set_capacity(Some(0)),
        Fault::FullDatabase => one.engine.fail_next_commits(1 + random.below(20) as u32),
        Fault::FailingDisk => {
            let call = FailingCall::ALL[random.below(FailingCall::ALL.len() as u64) as usize];
            let errno = ERRNOS[random.below(ERRNOS.len() as u64) as usize];
            world.history.note(format!("{call:?} answers {}", std::io::Error::from_raw_os_error(errno)));
            one.disk.failing(Some((call, errno)));
        }
        Fault::UnreadableDatabase => one.engine.fail_reads(true),
    }
}

/// Linux's EIO, ENOMEM, EACCES, ENFILE, EMFILE and EROFS.
const ERRNOS: [i32; 6] = [5, 12, 13, 23, 24, 30];

/// Longest wait for a write to break off.
const WRITE_WAIT: Duration = Duration::from_secs(2);

async fn crash_writer(world: &World, random: &SeededRandom) {
    let mut writer = world.writer.subscribe();
    if tokio::time::timeout(WRITE_WAIT, writer.changed()).await.is_err() {
        return;
    }
    let machine = &world.cluster.machines[*writer.borrow()];
    let delay = Duration::from_micros(random.below(2 * world.usual_delay.as_micros() as u64));
    tokio::time::sleep(delay).await;
    world.history.note(format!("FAULT CrashWriter machine {}", machine.number));
    machine.crash(Death::Reset);
    heal(world).await;
}

pub fn death(random: &SeededRandom) -> Death {
    if random.below(2) == 0 { Death::Reset } else { Death::Silent }
}

/// Ends every fault, except that clocks stay as they are.
pub async fn heal(world: &World) {
    world.history.note("heal");
    world.cluster.network.open_all_links();
    world.cluster.network.set_delay_max(world.usual_delay);
    for machine in &world.cluster.machines {
        machine.disk.set_capacity(None);
        machine.engine.fail_next_commits(0);
        machine.end_disk_errors();
        machine.set_disk_delay_max(Duration::from_millis(2));
    }
    for machine in &world.cluster.machines {
        restart(machine).await;
    }
}

async fn restart(machine: &Machine) {
    if machine.node().is_none() {
        machine.restart().await;
    }
}
