//! What replicas say to each other when they compare.

use garage_rpc::endpoint::{Class, Request};
use garage_types::Timestamp;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::digest::{RowDigest, SetDigest};
use crate::segments::KeyRange;
use crate::wire::TableId;

/// Ranges of local keys compared in one call, at most.
pub const RANGES_MAX: usize = 256;
/// Pieces that a range is cut into, at most.
pub const PIECES_MAX: u32 = 64;
/// Rows that one exchange names, at most.
pub const ROWS_NAMED_MAX: usize = 1024;
/// Bytes of rows after which a reply is cut.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

/// A range of local keys; `to` is exclusive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WireRange {
    #[serde(rename = "f")]
    pub from: ByteBuf,
    #[serde(rename = "t")]
    pub to: Option<ByteBuf>,
}

impl From<KeyRange> for WireRange {
    fn from(range: KeyRange) -> Self {
        WireRange { from: range.from.into(), to: range.to.map(Into::into) }
    }
}

impl From<WireRange> for KeyRange {
    fn from(range: WireRange) -> Self {
        KeyRange { from: range.from.into_vec(), to: range.to.map(ByteBuf::into_vec) }
    }
}

/// "What are the digests of your rows in these ranges, each in so many pieces?"
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskDigests {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "t")]
    pub table: TableId,
    #[serde(rename = "r")]
    pub ranges: Vec<WireRange>,
    #[serde(rename = "p")]
    pub pieces: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WirePiece {
    #[serde(rename = "t")]
    pub to: Option<ByteBuf>,
    #[serde(rename = "d")]
    pub digest: SetDigest,
}

/// For each range its pieces, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Digests {
    #[serde(rename = "r")]
    pub ranges: Vec<Vec<WirePiece>>,
    /// For each range the epoch of its slot.
    #[serde(rename = "e", default)]
    pub epochs: Vec<u64>,
    /// For each range the floor of its slot.
    #[serde(rename = "f", default)]
    pub floors: Vec<Timestamp>,
    /// What the caller has to know besides the rows; see [`crate::schema::Schema::notes`].
    #[serde(rename = "n", default)]
    pub notes: Vec<ByteBuf>,
}

impl Request for AskDigests {
    const ENDPOINT: &'static str = "table.digests/1";
    const CLASS: Class = Class::Bulk;
    type Reply = Digests;
}

/// A row of the caller's, by key and digest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Named {
    #[serde(rename = "k")]
    pub key: ByteBuf,
    #[serde(rename = "d")]
    pub digest: RowDigest,
}

/// Which rows a comparison is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Scope {
    /// Every row of either side.
    #[serde(rename = "a")]
    Both,
    /// Only the rows that the caller names.
    #[serde(rename = "c")]
    Callers,
}

/// "These are all my rows of this range; give me yours that I lack, and tell which of mine you want."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchange {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "t")]
    pub table: TableId,
    #[serde(rename = "r")]
    pub range: WireRange,
    #[serde(rename = "n")]
    pub named: Vec<Named>,
    #[serde(rename = "s")]
    pub scope: Scope,
}

/// A row with its local key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyedRow {
    #[serde(rename = "k")]
    pub key: ByteBuf,
    #[serde(rename = "r")]
    pub row: ByteBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchanged {
    /// The epoch of the range's slot, read together with the rows.
    #[serde(rename = "e")]
    pub epoch: u64,
    #[serde(rename = "r")]
    pub rows: Vec<KeyedRow>,
    /// Keys the caller has and this node lacks.
    #[serde(rename = "m")]
    pub missing: Vec<ByteBuf>,
    /// Keys both have, with different rows.
    #[serde(rename = "d")]
    pub different: Vec<ByteBuf>,
    /// The exchange covers the range up to here only; `None`: all of it.
    #[serde(rename = "u")]
    pub until: Option<ByteBuf>,
}

impl Request for Exchange {
    const ENDPOINT: &'static str = "table.exchange/1";
    const CLASS: Class = Class::Bulk;
    type Reply = Exchanged;
}
