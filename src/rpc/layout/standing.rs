//! How far this node's own rows can be trusted: a database that is new, or older than it should be, must not be believed to be complete.
//!
//! Must stay true: a node that is rebuilding answers no quorum read, judges no commit, offers no row, deletes no block and raises no
//! tracker. Shared by all who have to ask; the node's wiring decides it at the start, the rebuilding itself ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use garage_types::NodeId;
use garage_types::planted::{Bug, is_planted};
use tokio::sync::Notify;

use super::history::LayoutHistory;

/// What this node's rows are worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The database is new, and whether a layout ever counted on it is not known before a layout is.
    Fresh,
    /// The layout counts on rows that this database does not have.
    Rebuilding,
    /// An older database that an operator declared whole, because nobody has a better one: it answers, and collects and deletes nothing until
    /// it has been compared with the others.
    Accepted,
    Whole,
}

/// What is known when a node starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartFacts {
    /// Start of this node as the database recorded it last; `None` in a new database.
    pub recorded_start: Option<u64>,
    /// The start before this one, as the metadata directory counts them; 0 on a first start.
    pub previous_start: u64,
    /// A rebuilding was under way.
    pub was_rebuilding: bool,
    /// The database was accepted, and not compared with the others' yet.
    pub was_accepted: bool,
}

/// The standing of a node at its start, by its database, its files and the layout it remembers.
pub fn at_start(facts: StartFacts, history: &LayoutHistory, me: NodeId) -> Standing {
    if history.replication_factor() == 1 {
        // There is nobody to rebuild from: what is here is all there is.
        return Standing::Whole;
    }
    if facts.was_rebuilding {
        return Standing::Rebuilding;
    }
    match facts.recorded_start {
        None => with_layout(history, me),
        // Older than the files beside it: it was restored from a copy.
        Some(_) if is_planted(Bug::OldDatabaseBelieved) => Standing::Whole,
        Some(recorded) if recorded < facts.previous_start && history.members().contains(&me) => Standing::Rebuilding,
        Some(_) if facts.was_accepted => Standing::Accepted,
        Some(_) => Standing::Whole,
    }
}

/// What a new database means once a layout is known.
pub fn with_layout(history: &LayoutHistory, me: NodeId) -> Standing {
    if history.replication_factor() == 1 {
        Standing::Whole
    } else if !history.members().contains(&me) {
        Standing::Fresh
    } else if history.trackers().sync.get(me).is_some() && !is_planted(Bug::LostDatabaseUnnoticed) {
        // Somebody was told that this node had its rows.
        Standing::Rebuilding
    } else {
        Standing::Whole
    }
}

/// The standing, shared.
#[derive(Clone, Debug)]
pub struct SharedStanding(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    value: AtomicU8,
    changed: Notify,
}

impl SharedStanding {
    pub fn new(standing: Standing) -> Self {
        SharedStanding(Arc::new(Inner { value: AtomicU8::new(number(standing)), changed: Notify::new() }))
    }

    pub fn get(&self) -> Standing {
        match self.0.value.load(Ordering::Acquire) {
            0 => Standing::Fresh,
            1 => Standing::Rebuilding,
            2 => Standing::Accepted,
            _ => Standing::Whole,
        }
    }

    pub fn set(&self, standing: Standing) {
        self.0.value.store(number(standing), Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Resolves at the next change.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Whether rows may be believed to be missing because nobody wrote them.
    pub fn is_rebuilding(&self) -> bool {
        self.get() == Standing::Rebuilding
    }
}

fn number(standing: Standing) -> u8 {
    match standing {
        Standing::Fresh => 0,
        Standing::Rebuilding => 1,
        Standing::Accepted => 2,
        Standing::Whole => 3,
    }
}

#[cfg(test)]
mod tests {
    use garage_types::{NodeId, Timestamp};

    use super::{Standing, StartFacts, at_start, with_layout};
    use crate::layout::history::{LayoutHistory, OlderWrites};
    use crate::layout::version::NodeRole;

    const ME: NodeId = NodeId::from_bytes([1; 32]);

    fn history(replication_factor: usize, members: u8) -> LayoutHistory {
        let mut history = LayoutHistory::new(replication_factor);
        for n in 1..=members {
            let role = NodeRole { zone: n.to_string(), capacity: Some(1 << 20), tags: Vec::new() };
            history.stage_role(Timestamp::ZERO, NodeId::from_bytes([n; 32]), role).unwrap();
        }
        history.apply(1).unwrap();
        history
    }

    fn facts(recorded_start: Option<u64>, previous_start: u64) -> StartFacts {
        StartFacts { recorded_start, previous_start, was_rebuilding: false, was_accepted: false }
    }

    #[test]
    fn a_new_database_is_whole_only_where_nobody_counted_on_it() {
        let mut counted_on = history(3, 3);
        assert_eq!(at_start(facts(None, 0), &LayoutHistory::new(3), ME), Standing::Fresh);
        assert_eq!(with_layout(&counted_on, ME), Standing::Whole);
        counted_on.advance(ME, OlderWrites::Done);
        assert_eq!(with_layout(&counted_on, ME), Standing::Rebuilding);
        assert_eq!(with_layout(&counted_on, NodeId::from_bytes([9; 32])), Standing::Fresh);
        assert_eq!(at_start(facts(None, 7), &counted_on, ME), Standing::Rebuilding);
    }

    #[test]
    fn a_database_older_than_its_files_is_rebuilt() {
        let layout = history(3, 3);
        assert_eq!(at_start(facts(Some(4), 4), &layout, ME), Standing::Whole);
        assert_eq!(at_start(facts(Some(3), 4), &layout, ME), Standing::Rebuilding);
        assert_eq!(at_start(facts(Some(3), 4), &layout, NodeId::from_bytes([9; 32])), Standing::Whole);
    }

    #[test]
    fn a_rebuilding_goes_on_after_a_restart_except_where_there_is_nobody_else() {
        let facts = StartFacts { recorded_start: Some(4), previous_start: 4, was_rebuilding: true, was_accepted: false };
        assert_eq!(at_start(facts, &history(3, 3), ME), Standing::Rebuilding);
        assert_eq!(at_start(facts, &history(1, 1), ME), Standing::Whole);
    }

    #[test]
    fn an_accepted_database_stays_one_after_a_restart_unless_it_was_put_back_once_more() {
        let at = |recorded| StartFacts { was_accepted: true, ..facts(Some(recorded), 4) };
        assert_eq!(at_start(at(4), &history(3, 3), ME), Standing::Accepted);
        assert_eq!(at_start(at(3), &history(3, 3), ME), Standing::Rebuilding);
    }
}
