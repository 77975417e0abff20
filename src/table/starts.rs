//! What the database remembers of this node's starts, so that a new or restored database is noticed; and emptying one that is too old.

use std::ops::{Bound, ControlFlow};
use std::sync::atomic::Ordering;

use garage_db::{Db, DbError, Direction, Snapshot, Transaction, Tree};
use garage_rpc::layout::StartFacts;
use garage_types::Timestamp;

use crate::error::TableError;
use crate::rows;
use crate::segments::Segments;
use crate::set_aside::Reason;
use crate::store::TableStore;
use crate::sync::tenure::Tenures;

const START: &[u8] = b"start";
/// The database began after, or was copied before, other rows were stored here that nobody else has.
const LACKS_ROWS: &[u8] = b"lacks_rows";
pub(crate) const REBUILDING: &[u8] = b"rebuilding";
/// When the rebuilding set rows aside: milliseconds since 1970, big-endian.
pub(crate) const SET_ASIDE_AT: &[u8] = b"set_aside_at";
/// An operator has declared the database whole, and its rows are being brought back.
pub(crate) const ACCEPTING: &[u8] = b"accepting";
/// See [`Tenures`].
const TENURES: &[u8] = b"tenures";
/// They are back, and have not been compared with the others' yet.
pub(crate) const ACCEPTED: &[u8] = b"accepted";
/// Followed by a table's number: its digests are being built, and what there is of them is not all.
const DIGESTS_UNFINISHED: &[u8] = b"digests_unfinished";
/// Rows moved in one transaction.
const BATCH: usize = 500;

type KeyValue = (Vec<u8>, Vec<u8>);

/// The tree in which the database remembers.
pub(crate) const STATE_TREE: &str = "node_state";

/// What the database knows of earlier starts. `start`: the number of this one, as the metadata directory counts them.
///
/// # Errors
/// [`TableError`].
pub async fn start_facts(db: &Db, start: u64) -> Result<StartFacts, TableError> {
    let state = db.open_tree(STATE_TREE)?;
    let read = move |tx: &Snapshot<'_>| {
        let is_set = |key: &[u8]| Ok::<_, DbError>(tx.get(state, key)?.is_some());
        let recorded: Option<Vec<u8>> = tx.get(state, START)?;
        Ok::<_, DbError>((recorded, is_set(REBUILDING)?, is_set(ACCEPTED)?))
    };
    let (recorded, was_rebuilding, was_accepted) = db.read(read).await?;
    let recorded_start = match recorded {
        None => None,
        Some(bytes) => Some(u64::from_be_bytes(bytes.try_into().map_err(|_| TableError::DamagedState)?)),
    };
    Ok(StartFacts { recorded_start, previous_start: start.saturating_sub(1), was_rebuilding, was_accepted })
}

/// Raises the start that the database has recorded to `start`, so that copies made until now are older than what the metadata
/// directory counts from then on. Without effect on a new database, which no layout has settled yet.
///
/// # Errors
/// [`TableError`].
pub async fn raise_recorded_start(db: &Db, start: u64) -> Result<(), TableError> {
    let state = db.open_tree(STATE_TREE)?;
    let raise = move |tx: &mut Transaction<'_>| match tx.get(state, START)? {
        Some(_recorded) => tx.insert(state, START, &start.to_be_bytes()),
        None => Ok::<_, DbError>(()),
    };
    Ok(db.write(raise).await?)
}

/// Whether a node has block files when it opens its database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlocksOnDisk {
    None,
    Some,
}

impl TableStore {
    /// Records a start whose meaning has been settled.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn record_start(&self, start: u64) -> Result<(), TableError> {
        let state = self.0.state;
        let record = move |tx: &mut Transaction<'_>| {
            // One that a copy was made of meanwhile says a later one.
            let is_later = |bytes: Vec<u8>| <[u8; 8]>::try_from(bytes).is_ok_and(|bytes| u64::from_be_bytes(bytes) > start);
            if tx.get(state, START)?.is_some_and(is_later) { Ok(()) } else { tx.insert(state, START, &start.to_be_bytes()) }
        };
        Ok(self.db().write::<_, DbError>(record).await?)
    }

    /// Records, where nobody else has this node's rows, that its database is not all it was: it is new although the node or some of its
    /// blocks are not, or older than the files beside it. What such a database does not know may yet be needed by the one that was lost.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn note_lost_rows(&self, facts: StartFacts, blocks: BlocksOnDisk) -> Result<(), TableError> {
        let is_other = match facts.recorded_start {
            None => facts.previous_start > 0 || blocks == BlocksOnDisk::Some,
            Some(recorded) => recorded < facts.previous_start,
        };
        let state = self.0.state;
        let note = move |tx: &mut Transaction<'_>| {
            if is_other {
                tx.insert(state, LACKS_ROWS, &[1])?;
            }
            Ok::<_, DbError>(tx.get(state, LACKS_ROWS)?.is_some())
        };
        let lacks_rows = self.db().write(note).await?;
        self.0.lacks_rows.store(lacks_rows, Ordering::Release);
        Ok(())
    }

    /// Whether this node stored rows that neither its database nor any other node has.
    pub fn lacks_rows(&self) -> bool {
        self.0.lacks_rows.load(Ordering::Acquire)
    }

    /// The operator gives up what the database lacks. Returns whether it lacked anything.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn give_up_lost_rows(&self) -> Result<bool, TableError> {
        let state = self.0.state;
        self.db().write::<_, DbError>(move |tx| tx.remove(state, LACKS_ROWS)).await?;
        Ok(self.0.lacks_rows.swap(false, Ordering::AcqRel))
    }

    /// Records that this node rebuilds, and sets every row aside: what a database from another time says must not be mistaken for
    /// what is. To be called before anything is served. A rebuilding that was under way goes on, unless its database was put back.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn begin_rebuilding(&self, start: u64) -> Result<(), TableError> {
        let facts = start_facts(self.db(), start).await?;
        if facts.was_rebuilding && facts.recorded_start >= Some(facts.previous_start) {
            // It goes on with what it has, and is known as that by the next start.
            return self.record_start(start).await;
        }
        // A new database only has what was written to it since.
        if facts.recorded_start.is_some() {
            self.empty().await?;
        }
        let state = self.0.state;
        let record = move |tx: &mut Transaction<'_>| {
            tx.insert(state, START, &start.to_be_bytes())?;
            tx.remove(state, ACCEPTED)?;
            tx.insert(state, REBUILDING, &[1])
        };
        Ok(self.db().write(record).await?)
    }

    /// Sets every row aside and clears what follows from rows.
    async fn empty(&self) -> Result<(), TableError> {
        let tables: Vec<_> = self.0.tables.iter().map(|(table, local)| (*table, local.rows.raw())).collect();
        let (aside, state, now) = (self.0.set_aside, self.0.state, self.0.clock.now());
        // All under one time, also when a crash comes in between.
        let begin = move |tx: &mut Transaction<'_>| match tx.get(state, SET_ASIDE_AT)? {
            Some(begun) => Ok::<Vec<u8>, DbError>(begun),
            None => {
                let now = now.as_millis().to_be_bytes();
                tx.insert(state, SET_ASIDE_AT, &now).map(|()| now.to_vec())
            }
        };
        let begun = self.db().write(begin).await?;
        let at = Timestamp::from_millis(u64::from_be_bytes(begun.try_into().map_err(|_| TableError::DamagedState)?));
        for (table, tree) in tables {
            let move_some = move |tx: &mut Transaction<'_>| {
                let moved = first_rows(tx, tree, BATCH)?;
                for (key, stored) in &moved {
                    match rows::unsealed(key, stored) {
                        Some(row) => aside.keep(tx, (at, Reason::Restored), table, key, row)?,
                        None => aside.keep_damaged(tx, (at, Reason::Restored), table, key, stored)?,
                    }
                    tx.remove(tree, key)?;
                }
                Ok::<_, DbError>(moved.len())
            };
            while self.db().write(move_some).await? > 0 {}
        }
        let (epochs, epochs_aside) = (self.0.epochs.0, self.0.epochs_aside);
        let keep_epochs = move |tx: &mut Transaction<'_>| {
            first_rows(tx, epochs, usize::MAX)?.iter().try_for_each(|(key, epoch)| tx.insert(epochs_aside, key, epoch))
        };
        self.db().write::<_, DbError>(keep_epochs).await?;
        for tree in self.derived_trees() {
            let clear = move |tx: &mut Transaction<'_>| {
                let rows = first_rows(tx, tree, BATCH)?;
                rows.iter().try_for_each(|(key, _)| tx.remove(tree, key))?;
                Ok::<_, DbError>(rows.len())
            };
            while self.db().write(clear).await? > 0 {}
        }
        Ok(())
    }

    /// Records that the rebuilding is over.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn record_rebuilt(&self) -> Result<(), TableError> {
        let (state, epochs) = (self.0.state, self.0.epochs_aside);
        let record = move |tx: &mut Transaction<'_>| {
            for (key, _epoch) in first_rows(tx, epochs, usize::MAX)? {
                tx.remove(epochs, &key)?;
            }
            tx.remove(state, SET_ASIDE_AT)?;
            tx.remove(state, REBUILDING)
        };
        Ok(self.db().write::<_, DbError>(record).await?)
    }

    /// Since when this node has owned what it owns.
    ///
    /// # Errors
    /// The metadata engine's; [`TableError::DamagedState`].
    pub(crate) async fn tenures(&self) -> Result<Tenures, TableError> {
        let state = self.0.state;
        let recorded: Option<Vec<u8>> = self.db().read(move |tx: &Snapshot<'_>| tx.get(state, TENURES)).await?;
        match recorded {
            None => Ok(Tenures::Unrecorded),
            Some(bytes) => Tenures::decode(&bytes).ok_or(TableError::DamagedState),
        }
    }

    /// # Errors
    /// The metadata engine's.
    pub(crate) async fn record_tenures(&self, tenures: &Tenures) -> Result<(), TableError> {
        let (state, Some(bytes)) = (self.0.state, tenures.encode()) else { return Ok(()) };
        Ok(self.db().write::<_, DbError>(move |tx| tx.insert(state, TENURES, &bytes)).await?)
    }

    /// Adds up digests for a database that was written without them, and again where a crash cut that short.
    ///
    /// Each table's are built in one go from nothing, under a mark that goes with the last of them: some digests do not mean all.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn ensure_digests(&self) -> Result<(), TableError> {
        for (table, _) in self.tables() {
            let segments = self.segments(table)?;
            let (state, mark) = (self.0.state, [DIGESTS_UNFINISHED, &[table.0]].concat());
            let (read_segments, read_mark) = (segments.clone(), mark.clone());
            let is_complete = move |tx: &Snapshot<'_>| {
                let is_unfinished = tx.get(state, &read_mark)?.is_some();
                Ok::<_, TableError>(!is_unfinished && (read_segments.has_any(tx)? || tx.count(read_segments.rows.raw())? == 0))
            };
            if !self.db().read(is_complete).await? {
                self.build_digests(segments, mark).await?;
            }
        }
        Ok(())
    }

    async fn build_digests(&self, segments: Segments, mark: Vec<u8>) -> Result<(), TableError> {
        let state = self.0.state;
        tracing::info!(table = self.name_of(segments.table), "the digests of a table's rows are added up");
        let begin = mark.clone();
        self.db().write::<_, DbError>(move |tx| tx.insert(state, &begin, &[1])).await?;
        let cleared = segments.clone();
        while self
            .db()
            .write::<_, TableError>({
                let cleared = cleared.clone();
                move |tx| cleared.clear(tx, BATCH)
            })
            .await?
            > 0
        {}
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (segments, mark, from) = (segments.clone(), mark.clone(), after.clone());
            let build = move |tx: &mut Transaction<'_>| {
                let after = segments.build(tx, from.as_deref(), BATCH)?;
                if after.is_none() {
                    tx.remove(state, &mark)?;
                }
                Ok::<_, TableError>(after)
            };
            after = self.db().write(build).await?;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}

/// The first rows of a tree, at most `limit`.
pub(crate) fn first_rows(tx: &Transaction<'_>, tree: Tree, limit: usize) -> Result<Vec<KeyValue>, DbError> {
    let mut rows = Vec::new();
    tx.range(tree, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, row| {
        rows.push((key.to_vec(), row.to_vec()));
        if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(rows)
}
