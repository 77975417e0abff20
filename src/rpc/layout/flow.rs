//! Maximum flow (Dinic) and minimum cost (cancelling of negative cycles) on small integer networks.
//!
//! Pure and deterministic: the result depends on the arcs and the order in which they leave their vertices, nothing else. Called by
//! [`super::assign`] only.

use std::collections::VecDeque;

use garage_types::Random;

pub(super) type Vertex = usize;

/// One direction of an arc. The opposite direction of `a` is `a ^ 1`; arcs as added have even numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arc(u32);

impl Arc {
    /// The same arc, walked the other way.
    pub(super) fn reversed(self) -> Arc {
        Arc(self.0 ^ 1)
    }

    /// Whether this is the direction in which the arc was added.
    pub(super) fn is_forward(self) -> bool {
        self.0 & 1 == 0
    }

    /// Counts arcs as added: 0, 1, 2, … in both directions.
    pub(super) fn index(self) -> usize {
        (self.0 >> 1) as usize
    }

    fn slot(self) -> usize {
        self.0 as usize
    }
}

/// A directed network with a flow on it.
pub(super) struct FlowNetwork {
    heads: Vec<u32>,
    /// What each direction can still take: the reverse direction's residual is the flow.
    residual: Vec<u32>,
    out: Vec<Vec<Arc>>,
}

impl FlowNetwork {
    pub(super) fn new(vertices: usize) -> Self {
        FlowNetwork { heads: Vec::new(), residual: Vec::new(), out: vec![Vec::new(); vertices] }
    }

    pub(super) fn add_arc(&mut self, from: Vertex, to: Vertex, capacity: u32) -> Arc {
        let arc = Arc(self.heads.len() as u32);
        self.heads.extend([to as u32, from as u32]);
        self.residual.extend([capacity, 0]);
        self.out[from].push(arc);
        self.out[to].push(arc.reversed());
        arc
    }

    /// Puts the arcs that leave each vertex in random order, so that no node pair is favoured by its place in a list.
    pub(super) fn shuffle(&mut self, random: &dyn Random) {
        for arcs in &mut self.out {
            for last in (1..arcs.len()).rev() {
                let other = random.below(last as u64 + 1) as usize;
                arcs.swap(last, other);
            }
        }
    }

    pub(super) fn flow(&self, arc: Arc) -> u32 {
        self.residual[arc.reversed().slot()]
    }

    /// Takes the flow off an arc (in its forward direction) and gives it a new capacity.
    pub(super) fn reset_arc(&mut self, arc: Arc, capacity: u32) {
        self.residual[arc.slot()] = capacity;
        self.residual[arc.reversed().slot()] = 0;
    }

    /// Lets an arc take more, leaving its flow as it is.
    pub(super) fn widen_arc(&mut self, arc: Arc, by: u32) {
        self.residual[arc.slot()] += by;
    }

    /// Takes the flow off every arc; capacities stay.
    pub(super) fn clear_flow(&mut self) {
        for pair in self.residual.chunks_exact_mut(2) {
            pair[0] += pair[1];
            pair[1] = 0;
        }
    }

    /// Augments the flow until it is maximal; returns by how much it grew.
    pub(super) fn maximise(&mut self, source: Vertex, sink: Vertex) -> u64 {
        let mut grown = 0;
        while let Some(levels) = self.levels(source, sink) {
            grown += self.block(&levels, source, sink);
        }
        grown
    }

    fn head(&self, arc: Arc) -> Vertex {
        self.heads[arc.slot()] as usize
    }

    fn tail(&self, arc: Arc) -> Vertex {
        self.head(arc.reversed())
    }

    fn push(&mut self, arc: Arc, amount: u32) {
        self.residual[arc.slot()] -= amount;
        self.residual[arc.reversed().slot()] += amount;
    }

    /// Distances from the source in arcs that can take flow; `None` when the sink is out of reach.
    fn levels(&self, source: Vertex, sink: Vertex) -> Option<Vec<u32>> {
        let mut levels = vec![u32::MAX; self.out.len()];
        let mut queue = VecDeque::from([source]);
        levels[source] = 0;
        while let Some(vertex) = queue.pop_front() {
            for &arc in &self.out[vertex] {
                let head = self.head(arc);
                if self.residual[arc.slot()] > 0 && levels[head] == u32::MAX {
                    levels[head] = levels[vertex] + 1;
                    queue.push_back(head);
                }
            }
            if levels[sink] != u32::MAX {
                return Some(levels);
            }
        }
        None
    }

    /// A blocking flow: saturates every shortest path. Without recursion, as paths can be long.
    fn block(&mut self, levels: &[u32], source: Vertex, sink: Vertex) -> u64 {
        let mut next = vec![0; self.out.len()];
        let mut path: Vec<Arc> = Vec::new();
        let mut total = 0;
        let mut at = source;
        loop {
            if at == sink {
                let amount = path.iter().map(|arc| self.residual[arc.slot()]).min().unwrap_or(0);
                for arc in path.drain(..) {
                    self.push(arc, amount);
                }
                total += u64::from(amount);
                at = source;
                continue;
            }
            let leads_on = |arc: Arc| self.residual[arc.slot()] > 0 && levels[self.head(arc)] == levels[at] + 1;
            while next[at] < self.out[at].len() && !leads_on(self.out[at][next[at]]) {
                next[at] += 1;
            }
            if let Some(&arc) = self.out[at].get(next[at]) {
                path.push(arc);
                at = self.head(arc);
            } else {
                let Some(arc) = path.pop() else { return total };
                at = self.tail(arc);
                next[at] += 1;
            }
        }
    }

    /// Lowers the cost of the flow without changing its amount: while the residual network has a cycle of negative cost, sends one
    /// unit around it. The flow left is of minimal cost, unless `cycles_max` cycles were cancelled first.
    ///
    /// `cost`: what one more unit on this direction of an arc costs at the present flow. It must be convex in the flow, and a unit
    /// taken back must refund what the same unit costs.
    pub(super) fn cancel_negative_cycles(&mut self, cycles_max: usize, cost: impl Fn(&Self, Arc) -> i64) {
        // Labels are kept from one search to the next: only what a cancelled cycle changed has to be worked out again.
        let mut labels = vec![0; self.out.len()];
        let mut cancelled = 0;
        while cancelled < cycles_max {
            let cycles = self.negative_cycles(&mut labels, &cost);
            if cycles.is_empty() {
                return;
            }
            cancelled += cycles.len();
            for arc in cycles.into_iter().flatten() {
                self.push(arc, 1);
            }
        }
    }

    /// Bellman-Ford in rounds from any labels. Returns disjoint cycles of negative cost, none when there are none.
    fn negative_cycles(&self, labels: &mut [i64], cost: &impl Fn(&Self, Arc) -> i64) -> Vec<Vec<Arc>> {
        let mut parents: Vec<Option<Arc>> = vec![None; self.out.len()];
        let mut active: Vec<Vertex> = (0..self.out.len()).collect();
        let mut queued = vec![false; self.out.len()];
        while !active.is_empty() {
            let mut changed = Vec::new();
            for &vertex in &active {
                for &arc in &self.out[vertex] {
                    if self.residual[arc.slot()] == 0 {
                        continue;
                    }
                    let label = labels[vertex] + cost(self, arc);
                    let head = self.head(arc);
                    if label < labels[head] {
                        labels[head] = label;
                        parents[head] = Some(arc);
                        if !std::mem::replace(&mut queued[head], true) {
                            changed.push(head);
                        }
                    }
                }
            }
            let cycles = self.parent_cycles(&parents);
            if !cycles.is_empty() {
                return cycles;
            }
            for &vertex in &changed {
                queued[vertex] = false;
            }
            active = changed;
        }
        Vec::new()
    }

    /// The cycles formed by following `parents`; each of them has negative cost, as labels only ever sink.
    fn parent_cycles(&self, parents: &[Option<Arc>]) -> Vec<Vec<Arc>> {
        let mut walks = vec![0_u32; parents.len()];
        let mut cycles = Vec::new();
        for start in 0..parents.len() {
            let walk = start as u32 + 1;
            let mut at = start;
            while walks[at] == 0 {
                walks[at] = walk;
                let Some(arc) = parents[at] else { break };
                at = self.tail(arc);
            }
            if walks[at] == walk && parents[at].is_some() {
                cycles.push(self.parent_cycle(parents, at));
            }
        }
        cycles
    }

    fn parent_cycle(&self, parents: &[Option<Arc>], start: Vertex) -> Vec<Arc> {
        let mut cycle = Vec::new();
        let mut at = start;
        while let Some(arc) = parents[at] {
            cycle.push(arc);
            at = self.tail(arc);
            if at == start {
                break;
            }
        }
        cycle
    }
}

#[cfg(test)]
mod tests {
    use super::FlowNetwork;

    #[test]
    fn the_maximum_flow_undoes_a_bad_first_choice() {
        let mut network = FlowNetwork::new(4);
        network.add_arc(0, 1, 1);
        network.add_arc(1, 2, 1);
        network.add_arc(0, 2, 1);
        network.add_arc(1, 3, 1);
        network.add_arc(2, 3, 1);
        assert_eq!(network.maximise(0, 3), 2);
        assert_eq!(network.maximise(0, 3), 0, "it is maximal");
    }

    #[test]
    fn cancelling_moves_the_flow_to_the_cheaper_way() {
        let mut network = FlowNetwork::new(4);
        let dear = [network.add_arc(0, 1, 2), network.add_arc(1, 3, 2)];
        assert_eq!(network.maximise(0, 3), 2);
        let cheap = [network.add_arc(0, 2, 1), network.add_arc(2, 3, 1)];
        network.cancel_negative_cycles(usize::MAX, |_, arc| {
            let cost = if arc.index() < 2 { 3 } else { 2 };
            if arc.is_forward() { cost } else { -cost }
        });
        assert_eq!(dear.map(|arc| network.flow(arc)), [1, 1]);
        assert_eq!(cheap.map(|arc| network.flow(arc)), [1, 1]);
    }

    #[test]
    fn clearing_the_flow_keeps_capacities() {
        let mut network = FlowNetwork::new(2);
        let arc = network.add_arc(0, 1, 5);
        assert_eq!(network.maximise(0, 1), 5);
        network.clear_flow();
        assert_eq!(network.flow(arc), 0);
        network.widen_arc(arc, 1);
        assert_eq!(network.maximise(0, 1), 6);
        network.reset_arc(arc, 2);
        assert_eq!(network.maximise(0, 1), 2);
    }
}
