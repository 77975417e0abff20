//! What table requests and replies look like between nodes. Field names are short because every row carries them.

use garage_rpc::endpoint::{Class, Request};
use garage_types::{Placement, Timestamp};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::epochs::Slot;

/// A table's number on the wire and in the queue: never reused for another table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub u8);

/// How an owner treats an incoming row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// A new write: refused with [`Verdict::Behind`] when something newer is known, or when its condition does not hold.
    #[serde(rename = "c")]
    Commit,
    /// A copy of what another owner holds already (read-back, anti-entropy): merged, never refused.
    #[serde(rename = "r")]
    Replicate,
}

/// The epoch of rows that an owner makes itself, in the transaction's own time: they are never late.
pub const EPOCH_OF_OWNER: u64 = u64::MAX;

/// One row on its way to an owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    #[serde(rename = "t")]
    pub table: TableId,
    #[serde(rename = "p")]
    pub placement: Placement,
    #[serde(rename = "s")]
    pub sort_key: ByteBuf,
    #[serde(rename = "r")]
    pub row: ByteBuf,
    #[serde(rename = "m")]
    pub mode: Mode,
    /// Meaning given by the table's schema: what must hold in the owner's transaction for a commit to go through.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<ByteBuf>,
    /// Garbage collection epoch of the row's partition, as the sender knows it.
    #[serde(rename = "e", default)]
    pub epoch: u64,
    /// A copy by which owners make their rows equal: nobody counts the answer.
    #[serde(rename = "o", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_compared: bool,
}

/// An owner's answer to one write request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// Stored, durable, and nothing newer was known here.
    #[serde(rename = "w")]
    Won,
    /// Not stored: something at least as new as this is known here.
    #[serde(rename = "b")]
    Behind(Timestamp),
    /// Not stored: the condition does not hold; the reason is encoded by the table's schema.
    #[serde(rename = "r")]
    Refused(ByteBuf),
}

/// Rows to be stored in one transaction, all or none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Write {
    /// The caller's newest layout version.
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "n")]
    pub entries: Vec<Entry>,
}

impl Request for Write {
    const ENDPOINT: &'static str = "table.write/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Verdict;
}

/// One row by its key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Read {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "t")]
    pub table: TableId,
    #[serde(rename = "p")]
    pub placement: Placement,
    #[serde(rename = "s")]
    pub sort_key: ByteBuf,
}

/// The row, if this owner has it; tombstones are rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    #[serde(rename = "r")]
    pub row: Option<ByteBuf>,
}

impl Request for Read {
    const ENDPOINT: &'static str = "table.read/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Found;
}

/// Which way a range is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    #[serde(rename = "f")]
    Forward,
    #[serde(rename = "b")]
    Backward,
}

/// Which columns of the rows are wanted; what that means is the schema's choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Projection {
    #[serde(rename = "a")]
    Whole,
    /// Without bulky columns, for listings.
    #[serde(rename = "s")]
    Summary,
}

/// Rows of one placement with `from <= sort key < to`, tombstones included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Range {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "t")]
    pub table: TableId,
    #[serde(rename = "p")]
    pub placement: Placement,
    #[serde(rename = "f")]
    pub from: ByteBuf,
    /// `None`: to the end of the placement.
    #[serde(rename = "u")]
    pub to: Option<ByteBuf>,
    #[serde(rename = "o")]
    pub order: Order,
    /// At most this many rows.
    #[serde(rename = "n")]
    pub limit: u32,
    #[serde(rename = "j")]
    pub projection: Projection,
}

/// One row of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRow {
    #[serde(rename = "s")]
    pub sort_key: ByteBuf,
    #[serde(rename = "r")]
    pub row: ByteBuf,
}

/// A page of a range. When truncated, nothing is known beyond the last row's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    #[serde(rename = "n")]
    pub rows: Vec<RangeRow>,
    #[serde(rename = "x")]
    pub truncated: bool,
    /// The floor of the placement's slot, in the same snapshot: what was deleted up to this time may be unknown here.
    #[serde(rename = "f", default)]
    pub floor: Timestamp,
}

/// Half of what a stream that was used before is sure to send at once: a page of a listing should take one round trip.
const PAGE_PACKED_FROM: u32 = 64 << 10;

impl Request for Range {
    const ENDPOINT: &'static str = "table.range/1";
    const CLASS: Class = Class::Metadata;
    const REPLY_PACKED_FROM: Option<u32> = Some(PAGE_PACKED_FROM);
    type Reply = Page;
}

/// Under which epoch must rows of this table and slot be sent to you?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskEpoch {
    #[serde(rename = "t")]
    pub table: TableId,
    #[serde(rename = "s")]
    pub slot: Slot,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochIs {
    #[serde(rename = "e")]
    pub epoch: u64,
}

impl Request for AskEpoch {
    const ENDPOINT: &'static str = "table.epoch/1";
    const CLASS: Class = Class::Metadata;
    type Reply = EpochIs;
}
