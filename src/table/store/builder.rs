//! Collecting the tables of a store before it opens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use garage_db::{Db, DbError, Tree};
use garage_types::Clock;
use tokio::sync::Notify;

use super::{Inner, LiveLayouts, LocalTable, TableStore};
use crate::epochs::{EpochTree, FloorTree, Known};
use crate::graves::Graves;
use crate::rows::{Damaged, RowTree};
use crate::schema::{Schema, Typed};
use crate::set_aside::SetAsideTree;
use crate::starts::STATE_TREE;
use crate::wire::TableId;

/// Collects the schemas before the store opens.
pub struct Builder {
    db: Db,
    tables: BTreeMap<TableId, LocalTable>,
    derived: Vec<Tree>,
    damaged: Damaged,
}

impl Builder {
    pub fn new(db: Db) -> Self {
        Builder { db, tables: BTreeMap::new(), derived: Vec::new(), damaged: Damaged::default() }
    }

    /// Adds a table.
    ///
    /// # Errors
    /// The metadata engine's.
    ///
    /// # Panics
    /// When two tables have one id.
    pub fn with<S: Schema>(mut self, schema: Arc<S>) -> Result<Self, DbError> {
        let tree = self.db.open_tree(&format!("{}:rows", S::NAME))?;
        let rows = RowTree::new(tree, S::ID, (S::NAME, S::shown), self.damaged.clone());
        let table = LocalTable { rules: Arc::new(Typed(schema)), rows, generation: Arc::default() };
        assert!(self.tables.insert(S::ID, table).is_none(), "table id {:?} is used twice", S::ID);
        Ok(self)
    }

    /// Names a local tree that the schemas keep, and that can be made again from the rows.
    #[must_use]
    pub fn with_derived(mut self, tree: Tree) -> Self {
        self.derived.push(tree);
        self
    }

    /// # Errors
    /// The metadata engine's.
    pub fn open(self, clock: Arc<dyn Clock>, layouts: Arc<dyn LiveLayouts>) -> Result<TableStore, DbError> {
        let Builder { db, tables, derived, damaged } = self;
        let inner = Inner {
            queue: db.open_tree("queue")?,
            digests: db.open_tree("digests")?,
            epochs: EpochTree(db.open_tree("gc_epochs")?),
            floors: FloorTree(db.open_tree("gc_floors")?),
            known_epochs: Known::new(tables.keys().copied()),
            graves: Graves(db.open_tree("graves")?),
            set_aside: SetAsideTree(db.open_tree("rows_set_aside")?),
            older_set_aside: db.open_tree("set_aside")?,
            epochs_aside: db.open_tree("epochs_set_aside")?,
            state: db.open_tree(STATE_TREE)?,
            db,
            clock,
            layouts,
            tables,
            derived,
            damaged,
            lacks_rows: AtomicBool::new(false),
            queued: Notify::new(),
        };
        Ok(TableStore(Arc::new(inner)))
    }
}
