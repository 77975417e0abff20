//! What can go wrong with a row, at an owner or at the coordinator.

use garage_db::DbError;
use garage_rpc::error::{ErrorCode, RpcError};
use garage_rpc::quorum::QuorumError;
use garage_types::chain;
use garage_types::codec::DecodeError;

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
    #[error("table {0:?} is not known to this node")]
    UnknownTable(TableId),
    #[error("no layout has been applied to the cluster yet")]
    NoLayout,
    /// The caller's layout is older than the oldest one still live here.
    #[error("the call was made under layout version {caller}, the oldest live one is {oldest}")]
    StaleLayout { caller: u64, oldest: u64 },
    #[error("the row was sent under garbage collection epoch {caller}, its partition is at {current}")]
    StaleEpoch { caller: u64, current: u64 },
    /// Below the reserve: what is left is for deletions.
    #[error("there is no room for more metadata on this node")]
    NoRoom,
    #[error("too few owners of the row answered")]
    Quorum(#[source] Box<QuorumError<RpcError>>),
}

impl From<TableError> for RpcError {
    fn from(error: TableError) -> Self {
        let code = match &error {
            TableError::Db(DbError::Full { .. }) | TableError::NoRoom => ErrorCode::Full,
            TableError::Db(_) | TableError::Row { .. } => ErrorCode::Internal,
            TableError::UnknownTable(_) => ErrorCode::BadRequest,
            TableError::NoLayout | TableError::Quorum(_) => ErrorCode::Unavailable,
            TableError::StaleLayout { .. } => ErrorCode::StaleLayout,
            TableError::StaleEpoch { .. } => ErrorCode::StaleEpoch,
        };
        RpcError { code, message: chain(&error) }
    }
}
