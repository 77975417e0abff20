//! What can go wrong with a row, at an owner or at the coordinator.

use garage_db::DbError;
use garage_rpc::error::{ErrorCode, RpcError};
use garage_rpc::layout::LayoutError;
use garage_rpc::quorum::QuorumError;
use garage_types::codec::DecodeError;
use garage_types::{NodeId, chain};

use crate::epochs::Slot;
use crate::wire::TableId;

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("metadata engine")]
    Db(#[from] DbError),
    #[error("a row of table {table} cannot be read")]
    Row {
        table: &'static str,
        #[source]
        source: DecodeError,
    },
    /// What is stored is not what was written. Another owner has to answer; the row is repaired from the others.
    #[error("row {row} of table {table} does not match its checksum")]
    DamagedRow { table: &'static str, row: String },
    #[error("a row of table {table} has frame version {version}, which a newer version of this program wrote")]
    NewerRow { table: &'static str, version: u8 },
    #[error("table {0:?} is not known to this node")]
    UnknownTable(TableId),
    #[error("no layout has been applied to the cluster yet")]
    NoLayout,
    /// The caller's layout is older than the oldest one still live here.
    #[error("the call was made under layout version {caller}, the oldest live one is {oldest}")]
    StaleLayout { caller: u64, oldest: u64 },
    /// The caller has no role, and goes by an older layout than this node: rows may have been fetched from here for the newer one.
    #[error("the write was begun under layout version {writer} by a node without a role, the current one is {current}")]
    OldLayoutOfStranger { writer: u64, current: u64 },
    #[error("the row was sent under garbage collection epoch {caller}, its partition is at {current}")]
    StaleEpoch { caller: u64, current: u64 },
    #[error("the garbage collection epoch of table {table:?}, slot {} cannot be read", slot.0)]
    DamagedEpoch { table: TableId, slot: Slot },
    /// This node's rows are not all there: it can answer for none of them.
    #[error("the node is rebuilding its metadata from the other owners")]
    Rebuilding,
    #[error("a key of table {table:?} is too short to begin with a placement")]
    ShortKey { table: TableId },
    #[error("the record of this node's starts in the database cannot be read")]
    DamagedState,
    #[error("a row of table {table:?} was taken for a tombstone and is none")]
    NotATombstone { table: TableId },
    #[error("a tombstone of table {table:?} that is to be dropped was written in the future by this node's clock")]
    FutureTombstone { table: TableId },
    #[error("layout version {asked} is not the only live one here")]
    OtherLayout { asked: u64 },
    #[error("node {}", node.short())]
    Peer {
        node: NodeId,
        #[source]
        source: RpcError,
    },
    #[error(transparent)]
    Layout(LayoutError),
    #[error("the rows changed faster than they could be read")]
    Unsettled,
    /// Some owner may have stored the row before a collection that went on meanwhile; none has it now.
    #[error("whether the row was stored, and deleted again meanwhile, cannot be told")]
    PerhapsForgotten,
    /// Below the reserve: what is left is for deletions.
    #[error("there is no room for more metadata on this node")]
    NoRoom,
    /// The table's rules keep the row out for the time being.
    #[error("the owner does not take the row at this moment: {0}")]
    Withheld(&'static str),
    #[error("too few owners of the row answered")]
    Quorum(#[source] Box<QuorumError<RpcError>>),
}

impl TableError {
    /// What was damaged, where a damaged row is why there is no answer.
    pub fn damage(&self) -> Option<String> {
        let of_peer = |error: &RpcError| (error.code == ErrorCode::Corrupt).then(|| error.message.clone());
        match self {
            TableError::DamagedRow { .. } => Some(self.to_string()),
            TableError::Peer { source, .. } => of_peer(source),
            TableError::Quorum(quorum) => quorum.errors.iter().find_map(|failed| of_peer(&failed.error)),
            _ => None,
        }
    }

    /// Whether a node could not be asked at all.
    pub fn is_unreachable(&self) -> bool {
        let unreachable = |code| matches!(code, ErrorCode::Unavailable | ErrorCode::Timeout);
        matches!(self, TableError::Peer { source, .. } if unreachable(source.code))
    }
}

impl From<TableError> for RpcError {
    fn from(error: TableError) -> Self {
        let code = match &error {
            TableError::Db(DbError::Full { .. }) | TableError::NoRoom => ErrorCode::Full,
            TableError::Db(_)
            | TableError::DamagedState
            | TableError::Layout(_)
            | TableError::Row { .. }
            | TableError::NewerRow { .. }
            | TableError::DamagedEpoch { .. } => ErrorCode::Internal,
            TableError::DamagedRow { .. } => ErrorCode::Corrupt,
            TableError::UnknownTable(_) | TableError::ShortKey { .. } | TableError::NotATombstone { .. } => ErrorCode::BadRequest,
            TableError::NoLayout
            | TableError::Unsettled
            | TableError::PerhapsForgotten
            | TableError::Quorum(_)
            | TableError::Rebuilding
            | TableError::FutureTombstone { .. }
            | TableError::Withheld(_) => ErrorCode::Unavailable,
            TableError::Peer { source, .. } => source.code,
            TableError::StaleLayout { .. } | TableError::OldLayoutOfStranger { .. } | TableError::OtherLayout { .. } => {
                ErrorCode::StaleLayout
            }
            TableError::StaleEpoch { .. } => ErrorCode::StaleEpoch,
        };
        RpcError { code, message: chain(&error) }
    }
}
