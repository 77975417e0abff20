//! Stories: each leads a cluster into one dangerous situation and draws from a seed who is in it, how long it lasts and how slow the
//! network is. What random scenarios ([`crate::scenario`]) meet too rarely is met here by nearly every seed.
//!
//! A story is told with the clients, the history and the checks of the scenarios: it passes when everything that was read can be
//! explained and the cluster is in order at the end. `tests` tells each by fixed seeds; [`crate::planted_tests`] tells some with a bug
//! planted, which must be noticed.

mod collections;
mod databases;
mod deletions;
mod half_deleted;
mod layouts;
mod listings;
mod names;
mod overtaken;
mod refusals;

mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use garage_rpc::layout::NodeRole;
use garage_types::random::SeededRandom;
use garage_types::{NodeId, Random};
use tokio::task::JoinHandle;

use crate::checks;
use crate::cluster::Cluster;
use crate::cluster::machine::Machine;
use crate::faults::heal;
use crate::scenario::{ABILITIES, Flaw, Outcome, in_simulation, outcome_of, setup_of, world_of};
use crate::workload::{Mix, World};

/// One story.
#[derive(Clone, Copy)]
pub struct Story {
    pub name: &'static str,
    pub machines: usize,
    /// Of the machines, the first so many are in the first layout.
    pub roles: usize,
    pub replication_factor: usize,
    pub keys: usize,
    play: fn(Stage) -> BoxFuture<'static, ()>,
}

/// What stories start from: three machines, each with everything.
const THREE: Story =
    Story { name: "", machines: 3, roles: 3, replication_factor: 3, keys: 4, play: databases::lost_while_another_is_away };

pub const STORIES: [Story; 27] = [
    Story { name: "lost-database", ..THREE },
    Story { name: "two-lost-databases", machines: 5, roles: 5, replication_factor: 5, play: databases::two_are_lost, ..THREE },
    Story { name: "restored-database", play: databases::restored_from_a_copy, ..THREE },
    Story { name: "late-second-copy", machines: 4, play: databases::lost_before_the_second_copy, ..THREE },
    Story { name: "absent-owner", play: collections::an_owner_is_absent, ..THREE },
    Story { name: "late-copy", play: collections::a_copy_comes_late, ..THREE },
    Story { name: "broken-collection", machines: 4, play: collections::a_collection_breaks_off, ..THREE },
    Story { name: "late-reader", machines: 4, play: collections::a_reader_comes_late, ..THREE },
    Story { name: "returner", machines: 4, play: collections::an_old_owner_returns, ..THREE },
    Story { name: "late-returner", machines: 4, play: collections::an_owner_returns_late, ..THREE },
    Story { name: "replaced-owners", machines: 5, keys: 6, play: layouts::two_owners_are_replaced, ..THREE },
    Story { name: "one-source", machines: 6, play: layouts::one_stale_source, ..THREE },
    Story { name: "waiting-layout", machines: 7, play: layouts::a_layout_waits_for_one, ..THREE },
    Story { name: "writes-under-way", machines: 7, play: layouts::writes_are_under_way, ..THREE },
    Story { name: "stranger-writes", machines: 8, play: layouts::a_stranger_writes, ..THREE },
    Story { name: "missed-deletion", play: collections::a_deletion_is_missed, ..THREE },
    Story { name: "uneven-pages", machines: 4, keys: 40, play: listings::pages_reach_differently_far, ..THREE },
    Story { name: "one-knows", machines: 4, play: deletions::one_owner_knows, ..THREE },
    Story { name: "overtaken", machines: 8, roles: 6, play: overtaken::who_overtakes_is_lost, ..THREE },
    Story { name: "unsent-deletions", machines: 4, play: deletions::owners_reach_nobody, ..THREE },
    Story { name: "late-rival", machines: 7, play: refusals::a_rival_comes_late, ..THREE },
    Story { name: "rivals", machines: 7, play: refusals::a_rival_comes_early, ..THREE },
    Story { name: "unsound-layout", machines: 4, play: refusals::an_unsound_layout_is_told, ..THREE },
    Story { name: "claimed-names", play: names::claimed_at_once, ..THREE },
    Story { name: "deleted-buckets", play: names::claimed_and_deleted, ..THREE },
    Story { name: "half-deleted", machines: 6, play: half_deleted::its_deciders_are_replaced, ..THREE },
    Story { name: "lone-decision", machines: 5, play: half_deleted::one_alone_has_decided, ..THREE },
];

/// Tells a story by a seed, from an empty cluster to the last check.
pub fn tell(story: Story, seed: u64, flaw: Option<Flaw>) -> Outcome {
    in_simulation(flaw, tell_in_runtime(story, seed, flaw))
}

/// Without operations of its own: a story says what its clients do.
const NO_MIX: Mix = Mix { put: 0, get: 100, delete: 0, copy: 0, list: 0, create: 0, part: 0, complete: 0 };

async fn tell_in_runtime(story: Story, seed: u64, flaw: Option<Flaw>) -> Outcome {
    let setup = setup_of(story.replication_factor, flaw);
    let cluster = Cluster::start(seed, story.machines, story.roles, setup).await;
    let world = world_of(cluster, seed, story.keys, NO_MIX).await;
    let stage = Stage { world: world.clone(), random: Arc::new(SeededRandom::new(seed ^ 0x7374_6f72)), roles: story.roles };
    (story.play)(stage).await;
    heal(&world).await;
    checks::after_quiet(&world, ABILITIES).await;
    outcome_of(&world)
}

/// What a story is played on. Clones are the same.
#[derive(Clone)]
struct Stage {
    world: Arc<World>,
    random: Arc<SeededRandom>,
    /// How many machines are in the first layout.
    roles: usize,
}

impl Stage {
    fn machine(&self, number: usize) -> &Arc<Machine> {
        &self.world.cluster.machines[number]
    }

    fn id(&self, number: usize) -> NodeId {
        self.machine(number).id
    }

    fn keys(&self) -> &'static [&'static str] {
        self.world.used_keys()
    }

    /// Whether something happens that does so once in so many times.
    fn is_drawn(&self, once_in: u64) -> bool {
        self.random.below(once_in) == 0
    }

    fn some_key(&self) -> &'static str {
        self.keys()[self.random.below(self.keys().len() as u64) as usize]
    }

    fn some(&self, numbers: &[usize]) -> usize {
        numbers[self.random.below(numbers.len() as u64) as usize]
    }

    /// The machines of the first layout in an order drawn from the seed.
    fn shuffled(&self) -> Vec<usize> {
        let mut left: Vec<usize> = (0..self.roles).collect();
        let mut drawn = Vec::new();
        while !left.is_empty() {
            drawn.push(left.remove(self.random.below(left.len() as u64) as usize));
        }
        drawn
    }

    /// Lets between so many milliseconds pass.
    async fn pause(&self, from_ms: u64, to_ms: u64) {
        tokio::time::sleep(Duration::from_millis(from_ms + self.random.below(to_ms - from_ms))).await;
    }

    fn note(&self, what: &str) {
        self.world.history.note(format!("STORY {what}"));
    }

    /// Nothing gets from one machine to the other, nor back.
    fn cut(&self, one: usize, other: usize) {
        self.world.cluster.network.block(one, other);
        self.world.cluster.network.block(other, one);
    }

    /// Nothing gets to a machine nor from it.
    fn cut_off(&self, number: usize) {
        let others = self.world.cluster.machines.iter().map(|machine| machine.number).filter(|other| *other != number);
        others.for_each(|other| self.cut(number, other));
    }

    /// Opens every link but those between machines of the one group and machines of the other.
    fn cut_only(&self, one: &[usize], other: &[usize]) {
        self.world.cluster.network.open_all_links();
        self.cut_between(one, other);
    }

    /// Nothing gets from a machine of the one group to one of the other, nor back.
    fn cut_between(&self, one: &[usize], other: &[usize]) {
        one.iter().for_each(|one| other.iter().for_each(|other| self.cut(*one, *other)));
    }

    async fn all_connected(&self) {
        self.world.cluster.until("all machines are connected", Cluster::is_connected).await;
    }

    async fn put(&self, number: usize, key: &str) {
        self.world.put(&format!("story on {number}"), self.machine(number), key).await;
    }

    /// As [`Stage::put`], beside what follows.
    fn begin_put(&self, number: usize, key: &'static str) -> JoinHandle<()> {
        let stage = self.clone();
        tokio::spawn(async move { stage.put(number, key).await })
    }

    /// A client that reads one key.
    async fn get(&self, number: usize, key: &str) {
        self.world.get(&format!("story on {number}"), self.machine(number), key).await;
    }

    /// As [`Stage::delete`], beside what follows.
    fn begin_delete(&self, number: usize, key: &'static str) -> JoinHandle<()> {
        let stage = self.clone();
        tokio::spawn(async move { stage.delete(number, key).await })
    }

    async fn delete(&self, number: usize, key: &str) {
        self.world.delete(&format!("story on {number}"), self.machine(number), key).await;
    }

    /// Something is written to every key, through one of these machines each.
    async fn fill(&self, through: &[usize]) {
        for key in self.keys() {
            self.put(self.some(through), key).await;
        }
    }

    async fn read_all(&self, through: &[usize]) {
        for key in self.keys() {
            self.get(self.some(through), key).await;
        }
    }

    /// A client that reads, and sometimes lists, through these machines until it is told to stop.
    fn reader(&self, through: &[usize], pause_max_ms: u64) -> Reader {
        let (stage, through) = (self.clone(), through.to_vec());
        Reader(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1 + stage.random.below(pause_max_ms))).await;
                let number = stage.some(&through);
                let (name, machine) = (format!("reader on {number}"), stage.machine(number));
                if stage.is_drawn(8) {
                    stage.world.list(&name, machine, 2).await;
                } else {
                    stage.world.get(&name, machine, stage.some_key()).await;
                }
            }
        }))
    }

    /// A role with which a machine stores, in a zone of its own.
    fn role(&self, number: usize) -> NodeRole {
        NodeRole { zone: format!("zone{number}"), capacity: Some(1 << 30), tags: Vec::new() }
    }

    /// With the next layout a machine gets a role without storing anything.
    async fn stage_gateway(&self, through: usize, number: usize) {
        let layout = self.machine(through).node().expect("it runs").layout;
        let role = NodeRole { capacity: None, ..self.role(number) };
        layout.stage_role(self.id(number), role).await.expect("a role can be staged");
    }

    /// Makes the next layout through a machine: some machines leave, and some take their places.
    async fn change_layout(&self, through: usize, leave: &[usize], come: &[usize]) -> u64 {
        self.stage_change(through, leave, come).await;
        self.apply_layout(through).await
    }

    /// Prepares what [`Stage::apply_layout`] makes the next layout.
    async fn stage_change(&self, through: usize, leave: &[usize], come: &[usize]) {
        self.note(&format!("next layout: {leave:?} leave, {come:?} come"));
        let layout = self.machine(through).node().expect("it runs").layout;
        for number in leave {
            layout.stage_removal(self.id(*number)).await.expect("a removal can be staged");
        }
        for number in come {
            layout.stage_role(self.id(*number), self.role(*number)).await.expect("a role can be staged");
        }
    }

    async fn apply_layout(&self, through: usize) -> u64 {
        let layout = self.machine(through).node().expect("it runs").layout;
        let number = layout.current().version() + 1;
        self.note(&format!("layout {number}"));
        layout.apply(number).await.expect("the layout can be applied");
        number
    }

    /// Waits until every machine that runs only goes by this layout.
    async fn settled(&self, number: u64) {
        let all: Vec<usize> = (0..self.world.cluster.machines.len()).collect();
        self.settled_on(&all, number).await;
    }

    /// As [`Stage::settled`], of these machines.
    async fn settled_on(&self, numbers: &[usize], number: u64) {
        let is_settled = |cluster: &Cluster| {
            numbers.iter().filter_map(|machine| cluster.machines[*machine].node()).all(|node| {
                let layout = node.layout.current();
                layout.version() == number && layout.live_versions().len() == 1
            })
        };
        self.world.cluster.until("the layout is the only one", is_settled).await;
        self.note(&format!("layout {number} is the only one on {numbers:?}"));
    }

    /// Waits until a machine has heard of each of these that it has all rows that a layout asks of it.
    async fn synced(&self, seen_from: usize, numbers: &[usize], layout: u64) {
        let ids: Vec<NodeId> = numbers.iter().map(|number| self.id(*number)).collect();
        let is_synced = |cluster: &Cluster| {
            let node = cluster.machines[seen_from].node().expect("it runs");
            let current = node.layout.current();
            let sync = &current.history().trackers().sync;
            ids.iter().all(|id| sync.get(*id).is_some_and(|reached| reached.number >= layout))
        };
        self.world.cluster.until("machines have the rows of the layout", is_synced).await;
        self.note(&format!("{numbers:?} have the rows of layout {layout}"));
    }
}

/// A client that reads until this is dropped.
struct Reader(JoinHandle<()>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}
