//! Operators who change the layout while everybody works: changes drawn from a seed, made through any machine that runs.
//!
//! They keep to what the documentation asks of them: as many storage machines stay as there are copies, and a machine that is to go
//! runs until the layout without it is the only one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use garage_model::Garage;
use garage_rpc::layout::history::VersionStatus;
use garage_rpc::layout::version::{LayoutParameters, VersionKey, ZoneRedundancy};
use garage_rpc::layout::{LayoutError, LayoutManager, NodeRole};
use garage_types::random::SeededRandom;
use garage_types::{NodeId, Random, chain};

use crate::cluster::Cluster;
use crate::cluster::machine::Machine;
use crate::workload::World;

/// How long an operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for the last layout to be the only one, once nothing stands in its way.
const SETTLE_MAX: Duration = Duration::from_secs(900);
/// How often an operator chooses between layouts, each time in vain: there are no more of them than changes at once.
const CHOICES_MAX: usize = 5;
/// Units in which capacities are given.
const CAPACITY: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A machine without a role gets one.
    Add,
    /// A storage machine loses its role.
    Remove,
    /// A machine without a role takes the place of a storage machine.
    Replace,
    Resize,
    Rezone,
    /// A machine keeps nothing any more, and stays as a gateway.
    BecomeGateway,
    Redundancy,
    /// Of every machine it is drawn anew whether it stores.
    Shuffle,
}

const KINDS: [Kind; 9] = [
    Kind::Add,
    Kind::Remove,
    Kind::Replace,
    Kind::Replace,
    Kind::Resize,
    Kind::Rezone,
    Kind::BecomeGateway,
    Kind::Redundancy,
    Kind::Shuffle,
];

/// The role of every machine that has one.
type Roles = BTreeMap<NodeId, NodeRole>;

/// What an operator stages before applying it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// `None` removes the machine.
    roles: Vec<(NodeId, Option<NodeRole>)>,
    parameters: Option<LayoutParameters>,
}

/// What the kind of change makes of `roles`; `None` when there is nothing to do it with, or too few storage machines would be left.
fn plan(kind: Kind, roles: &Roles, machines: &[NodeId], copies: usize, random: &dyn Random) -> Option<Plan> {
    let storing: Vec<NodeId> = roles.iter().filter(|(_, role)| role.capacity.is_some()).map(|(id, _)| *id).collect();
    let idle: Vec<NodeId> = machines.iter().copied().filter(|id| !storing.contains(id)).collect();
    let some = |nodes: &[NodeId]| (!nodes.is_empty()).then(|| nodes[random.below(nodes.len() as u64) as usize]);
    let capacity = || Some(CAPACITY * (1 + random.below(4)));
    let zone = || format!("zone{}", random.below(machines.len() as u64));
    let fresh = || NodeRole { zone: zone(), capacity: capacity(), tags: Vec::new() };
    let changed = match kind {
        Kind::Add => vec![(some(&idle)?, Some(fresh()))],
        Kind::Remove => vec![(some(&storing)?, None)],
        Kind::Replace => {
            let (old, new) = (some(&storing)?, some(&idle)?);
            vec![(new, roles.get(&old).cloned()), (old, None)]
        }
        Kind::Resize => {
            let machine = some(&storing)?;
            vec![(machine, Some(NodeRole { capacity: capacity(), ..roles[&machine].clone() }))]
        }
        Kind::Rezone => {
            let machine = some(&storing)?;
            vec![(machine, Some(NodeRole { zone: zone(), ..roles[&machine].clone() }))]
        }
        Kind::BecomeGateway => vec![(some(machines)?, Some(NodeRole { capacity: None, ..fresh() }))],
        Kind::Redundancy => Vec::new(),
        Kind::Shuffle => {
            let mut changed = Vec::new();
            for machine in machines {
                match (random.below(2) == 0, roles.contains_key(machine)) {
                    (true, _) => changed.push((*machine, Some(fresh()))),
                    (false, true) => changed.push((*machine, None)),
                    (false, false) => {}
                }
            }
            changed
        }
    };
    let parameters = (kind == Kind::Redundancy).then(|| {
        let at_least = random.below(copies as u64 + 1) as usize;
        let zone_redundancy = if at_least == 0 { ZoneRedundancy::Maximum } else { ZoneRedundancy::AtLeast(at_least) };
        LayoutParameters { zone_redundancy }
    });
    let mut after: BTreeSet<NodeId> = storing.into_iter().collect();
    for (id, role) in &changed {
        if role.as_ref().is_some_and(|role| role.capacity.is_some()) {
            after.insert(*id);
        } else {
            after.remove(id);
        }
    }
    (after.len() >= copies).then_some(Plan { roles: changed, parameters })
}

/// Changes the layout once or a few times in a row, each through a machine of its own.
pub async fn change(world: &World, random: &SeededRandom) {
    let times = if random.below(3) == 0 { 2 + random.below(2) } else { 1 };
    for _time in 0..times {
        change_once(world, random).await;
        tokio::time::sleep(Duration::from_millis(random.below(400))).await;
    }
    // Mostly some of it is moved before the next change comes.
    if random.below(3) > 0 {
        tokio::time::sleep(Duration::from_millis(random.below(8_000))).await;
    }
}

async fn change_once(world: &World, random: &SeededRandom) {
    let machines = &world.cluster.machines;
    let machine = &machines[random.below(machines.len() as u64) as usize];
    let kind = KINDS[random.below(KINDS.len() as u64) as usize];
    let Some(node) = machine.node() else { return };
    end_conflicts(world, machine).await;
    let history = node.layout.current().history().clone();
    let ids: Vec<NodeId> = machines.iter().map(|machine| machine.id).collect();
    let roles = history.current().map(|version| version.roles().clone()).unwrap_or_default();
    let Some(plan) = plan(kind, &roles, &ids, history.replication_factor(), random) else { return };
    let name = format!("FAULT LayoutChange {kind:?} to {} through machine {}", history.current_number() + 1, machine.number);
    world.history.note(format!("{name}: {}", shown(world, &plan)));
    let done = machine.run(PATIENCE, |garage| async move { apply(garage.cluster().layout_manager(), plan).await }).await;
    match done {
        Ok(Ok(number)) => world.history.note(format!("{name} -> layout {number}")),
        Ok(Err(error)) => world.history.note(format!("{name} -> {}", chain(&error))),
        Err(no_answer) => world.history.note(format!("{name} -> {no_answer:?}")),
    }
}

fn shown(world: &World, plan: &Plan) -> String {
    let number = |id: &NodeId| world.cluster.machines.iter().find(|machine| machine.id == *id).map(|machine| machine.number);
    let role = |(id, role): &(NodeId, Option<NodeRole>)| {
        let role = role.as_ref().map(|role| (role.zone.clone(), role.capacity.map(|bytes| bytes / CAPACITY)));
        format!("{:?}: {role:?}", number(id).unwrap_or(usize::MAX))
    };
    let roles: Vec<String> = plan.roles.iter().map(role).collect();
    format!("{}, {:?}", roles.join(", "), plan.parameters)
}

/// As the command line does: what others staged is dropped, then everything is staged and applied.
async fn apply(layout: &LayoutManager, plan: Plan) -> Result<u64, LayoutError> {
    layout.revert().await?;
    for (id, role) in plan.roles {
        match role {
            Some(role) => layout.stage_role(id, role).await?,
            None => layout.stage_removal(id).await?,
        }
    }
    if let Some(parameters) = plan.parameters {
        layout.stage_parameters(parameters).await?;
    }
    let number = layout.current().version() + 1;
    if let Err(error) = layout.apply(number).await {
        layout.revert().await?;
        return Err(error);
    }
    Ok(number)
}

/// Where two operators made different layouts with one number, the machine's operator chooses one of them.
async fn end_conflicts(world: &World, machine: &Machine) -> Choice {
    let work = |garage: Garage| async move {
        let layout = garage.cluster().layout_manager();
        let conflicts = layout.current().history().conflicts();
        let Some(digest) = conflicts.first().and_then(|conflict| conflict.digests.first()) else { return Ok(None) };
        layout.resolve(digest.hex()).await.map(Some)
    };
    match machine.run(PATIENCE, work).await {
        Ok(Ok(None)) | Err(_) => {}
        Ok(Ok(Some(key))) => {
            world.history.note(format!("chose {key:?} through machine {}", machine.number));
            return Choice::Made;
        }
        Ok(Err(error)) => world.history.note(format!("nothing could be chosen: {}", chain(&error))),
    }
    Choice::None
}

/// Whether an operator chose between layouts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Made,
    None,
}

/// Waits until the last layout is the only live one, on every machine; that it never is, is a violation.
pub async fn settle(world: &World) {
    let settling = async {
        let mut choices = 0;
        while !is_settled(&world.cluster) && choices < CHOICES_MAX {
            // One who looks at `status` now and then.
            choices += usize::from(end_conflicts(world, &world.cluster.machines[0]).await == Choice::Made);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    let timely = tokio::time::timeout(SETTLE_MAX, settling).await.is_ok();
    if !timely || !is_settled(&world.cluster) {
        for machine in &world.cluster.machines {
            world.history.note(format!("machine {} ({}): {}", machine.number, machine.id.short(), state_of(machine)));
        }
        world.history.violation("the last layout never became the only one");
    }
}

fn is_settled(cluster: &Cluster) -> bool {
    let only = |machine: &Machine| -> Option<VersionKey> {
        let layout = machine.node()?.layout.current();
        match layout.live_versions() {
            [only] => Some(*only),
            _ => None,
        }
    };
    let first = only(&cluster.machines[0]);
    first.is_some() && cluster.machines.iter().all(|machine| only(machine) == first)
}

fn state_of(machine: &Machine) -> String {
    let Some(node) = machine.node() else { return "off".to_owned() };
    let layout = node.layout.current();
    let history = layout.history();
    let live: Vec<String> = history
        .summaries()
        .into_iter()
        .filter(|summary| summary.status != VersionStatus::Historical)
        .map(|summary| format!("{:?}", summary.key))
        .collect();
    let tracked = |tracker: &garage_rpc::layout::trackers::Tracker| {
        let reached = history.members().into_iter().map(|node| {
            let number = tracker.get(node).map(|key| key.number);
            format!("{} {number:?}", node.short())
        });
        reached.collect::<Vec<_>>().join(", ")
    };
    let trackers = history.trackers();
    format!(
        "{:?}, live {live:?}; ack {}; sync {}; sync_ack {}",
        node.layout.standing().get(),
        tracked(&trackers.ack),
        tracked(&trackers.sync),
        tracked(&trackers.sync_ack)
    )
}

#[cfg(test)]
mod tests {
    use garage_types::NodeId;
    use garage_types::random::SeededRandom;

    use super::{KINDS, Kind, NodeRole, Plan, Roles, plan};

    fn machines(count: u8) -> Vec<NodeId> {
        (0..count).map(|n| NodeId::from_bytes([n; 32])).collect()
    }

    fn storing(count: u8) -> Roles {
        let role = |id: NodeId| (id, NodeRole { zone: "z".to_owned(), capacity: Some(1), tags: Vec::new() });
        machines(count).into_iter().map(role).collect()
    }

    #[test]
    fn enough_storage_machines_are_left_whatever_is_drawn() {
        for seed in 0..300 {
            let random = SeededRandom::new(seed);
            let kind = KINDS[seed as usize % KINDS.len()];
            let mut roles = storing(3 + (seed % 3) as u8);
            let Some(Plan { roles: changed, .. }) = plan(kind, &roles, &machines(6), 3, &random) else { continue };
            for (id, role) in changed {
                match role {
                    Some(role) => roles.insert(id, role),
                    None => roles.remove(&id),
                };
            }
            assert!(roles.values().filter(|role| role.capacity.is_some()).count() >= 3, "{kind:?}, seed {seed}");
        }
    }

    #[test]
    fn a_machine_that_replaces_another_inherits_its_role() {
        let random = SeededRandom::new(1);
        let roles = storing(3);
        let Plan { roles: changed, .. } = plan(Kind::Replace, &roles, &machines(4), 3, &random).unwrap();
        let (new, old) = (machines(4)[3], changed[1].0);
        assert_eq!(changed, [(new, roles.get(&old).cloned()), (old, None)]);
        assert_eq!(plan(Kind::Replace, &roles, &machines(3), 3, &random), None, "nobody is left to take its place");
        assert_eq!(plan(Kind::Remove, &roles, &machines(4), 3, &random), None);
    }
}
