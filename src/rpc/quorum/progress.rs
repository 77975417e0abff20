//! Counting answers, without calling anybody.

use garage_types::NodeId;

/// Where a write stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    Pending,
    /// Every set has its quorum.
    Reached,
    /// Some set cannot reach its quorum any more.
    Impossible,
}

/// A write to several sets of nodes, one for each live layout version, each of which needs its quorum.
#[derive(Debug, Clone)]
pub struct WriteProgress<E> {
    sets: Vec<SetProgress>,
    errors: Vec<NodeError<E>>,
}

#[derive(Debug, Clone)]
struct SetProgress {
    waiting: Vec<NodeId>,
    size: usize,
    needed: usize,
    written: usize,
}

/// How many nodes of each set must write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteQuorum {
    Count(usize),
    /// More than half of each set, for rows that every node has.
    Majority,
    /// Every node of each set: nobody may have missed it.
    All,
}

impl From<usize> for WriteQuorum {
    fn from(count: usize) -> Self {
        WriteQuorum::Count(count)
    }
}

impl WriteQuorum {
    /// Of a set of `size` nodes.
    pub fn of(self, size: usize) -> usize {
        match self {
            WriteQuorum::Count(count) => count,
            WriteQuorum::Majority => size / 2 + 1,
            WriteQuorum::All => size,
        }
    }
}

/// A node's answer to a call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeError<E> {
    pub node: NodeId,
    pub error: E,
}

/// How far one set came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetCount {
    pub needed: usize,
    pub written: usize,
    pub size: usize,
}

impl<E> WriteProgress<E> {
    /// `quorum`: what each set needs.
    pub fn new<S: AsRef<[NodeId]>>(sets: &[S], quorum: impl Into<WriteQuorum>) -> Self {
        let quorum = quorum.into();
        let set = |nodes: &S| {
            let nodes = nodes.as_ref();
            SetProgress { waiting: nodes.to_vec(), size: nodes.len(), needed: quorum.of(nodes.len()), written: 0 }
        };
        WriteProgress { sets: sets.iter().map(set).collect(), errors: Vec::new() }
    }

    /// A node has written. Nodes that answered before, or were not asked, do not count.
    pub fn on_ok(&mut self, node: NodeId) -> Progress {
        for set in &mut self.sets {
            set.written += usize::from(set.answered(node));
        }
        self.progress()
    }

    /// A node has failed.
    pub fn on_error(&mut self, node: NodeId, error: E) -> Progress {
        for set in &mut self.sets {
            set.answered(node);
        }
        self.errors.push(NodeError { node, error });
        self.progress()
    }

    /// Without any set nothing can be written, and the write is impossible.
    pub fn progress(&self) -> Progress {
        let hopeless = |set: &SetProgress| set.written + set.waiting.len() < set.needed;
        if self.sets.is_empty() || self.sets.iter().any(hopeless) {
            Progress::Impossible
        } else if self.sets.iter().all(|set| set.written >= set.needed) {
            Progress::Reached
        } else {
            Progress::Pending
        }
    }

    /// The set that lacks the most acknowledgements.
    pub fn worst_set(&self) -> SetCount {
        let worst = self.sets.iter().max_by_key(|set| set.needed.saturating_sub(set.written));
        worst.map_or(SetCount::default(), |set| SetCount { needed: set.needed, written: set.written, size: set.size })
    }

    pub fn into_errors(self) -> Vec<NodeError<E>> {
        self.errors
    }
}

impl SetProgress {
    /// Whether this was an answer the set was waiting for.
    fn answered(&mut self, node: NodeId) -> bool {
        let position = self.waiting.iter().position(|waiting| *waiting == node);
        position.map(|index| self.waiting.swap_remove(index)).is_some()
    }
}

/// What a read does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadStep {
    Wait,
    /// Ask the next node of the list.
    AskNext,
    /// Enough nodes answered.
    Reached,
    /// Not enough nodes are left.
    Impossible,
}

/// A read from a list of nodes, nearest first: asks as few as possible, the next one when a node fails or is late.
#[derive(Debug, Clone)]
pub struct ReadProgress {
    nodes: usize,
    quorum: usize,
    asked: usize,
    answered: usize,
    failed: usize,
}

impl ReadProgress {
    /// `nodes`: how many can be asked; `quorum`: how many must answer.
    pub fn new(nodes: usize, quorum: usize) -> Self {
        ReadProgress { nodes, quorum, asked: 0, answered: 0, failed: 0 }
    }

    /// What to do now. [`ReadStep::AskNext`] asks for one call; there may be more to do after it.
    pub fn step(&mut self) -> ReadStep {
        if self.answered >= self.quorum {
            ReadStep::Reached
        } else if self.failed + self.quorum > self.nodes {
            ReadStep::Impossible
        } else if self.asked < self.quorum + self.failed {
            self.ask_next()
        } else {
            ReadStep::Wait
        }
    }

    pub fn on_ok(&mut self) {
        self.answered += 1;
    }

    pub fn on_error(&mut self) {
        self.failed += 1;
    }

    /// No answer came for a while.
    pub fn on_late(&mut self) -> ReadStep {
        if self.has_more() { self.ask_next() } else { ReadStep::Wait }
    }

    /// Whether there are nodes that were not asked.
    pub fn has_more(&self) -> bool {
        self.asked < self.nodes
    }

    fn ask_next(&mut self) -> ReadStep {
        self.asked += 1;
        ReadStep::AskNext
    }
}

#[cfg(test)]
mod tests {
    use garage_types::NodeId;

    use super::{Progress, ReadProgress, ReadStep, SetCount, WriteProgress};

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn set<const N: usize>(nodes: [u8; N]) -> Vec<NodeId> {
        nodes.map(node).to_vec()
    }

    #[test]
    fn a_write_needs_its_quorum_in_every_set() {
        let mut write = WriteProgress::<()>::new(&[set([1, 2, 3]), set([3, 4, 5])], 2);
        assert_eq!(write.on_ok(node(1)), Progress::Pending);
        assert_eq!(write.on_ok(node(2)), Progress::Pending);
        assert_eq!(write.on_ok(node(3)), Progress::Pending);
        assert_eq!(write.worst_set(), SetCount { needed: 2, written: 1, size: 3 });
        assert_eq!(write.on_error(node(4), ()), Progress::Pending);
        assert_eq!(write.on_ok(node(5)), Progress::Reached);
    }

    #[test]
    fn a_write_is_given_up_when_one_set_cannot_reach_its_quorum() {
        let mut write = WriteProgress::new(&[set([1, 2, 3]), set([3, 4, 5])], 2);
        assert_eq!(write.on_error(node(3), "down"), Progress::Pending);
        assert_eq!(write.on_error(node(4), "down"), Progress::Impossible);
        assert_eq!(write.into_errors().len(), 2);
        assert_eq!(WriteProgress::<()>::new(&[set([1])], 2).progress(), Progress::Impossible);
        assert_eq!(WriteProgress::<()>::new::<Vec<NodeId>>(&[], 1).progress(), Progress::Impossible);
    }

    #[test]
    fn a_node_counts_once_and_a_stranger_never() {
        let mut write = WriteProgress::<()>::new(&[set([1, 2, 3])], 2);
        assert_eq!(write.on_ok(node(1)), Progress::Pending);
        assert_eq!(write.on_ok(node(1)), Progress::Pending);
        assert_eq!(write.on_ok(node(9)), Progress::Pending);
        assert_eq!(write.on_ok(node(2)), Progress::Reached);
    }

    #[test]
    fn a_read_asks_only_as_many_as_it_needs() {
        let mut read = ReadProgress::new(3, 2);
        let steps: [ReadStep; 3] = std::array::from_fn(|_| read.step());
        assert_eq!(steps, [ReadStep::AskNext, ReadStep::AskNext, ReadStep::Wait]);
        read.on_ok();
        read.on_ok();
        assert_eq!(read.step(), ReadStep::Reached);
    }

    #[test]
    fn a_read_asks_the_next_after_an_error_or_a_delay_and_gives_up_without_any() {
        let mut read = ReadProgress::new(3, 1);
        assert_eq!(read.step(), ReadStep::AskNext);
        read.on_error();
        assert_eq!(read.step(), ReadStep::AskNext);
        assert_eq!(read.on_late(), ReadStep::AskNext);
        assert_eq!(read.on_late(), ReadStep::Wait, "all were asked");
        read.on_error();
        assert_eq!(read.step(), ReadStep::Wait, "the late one may still answer");
        read.on_error();
        assert_eq!(read.step(), ReadStep::Impossible);
        assert_eq!(ReadProgress::new(1, 2).step(), ReadStep::Impossible);
    }
}
