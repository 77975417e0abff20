//! Bugs planted on purpose, one at a time, to show that the simulator finds them.
//!
//! Without the feature `planted`, which only the simulator's tests turn on, every question is answered "no" at compile time; with it
//! a release build is refused.

/// A bug to plant. Rooms ask for it where it would sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A write is acknowledged once one owner has it.
    WriteQuorumOfOne,
    /// A read whose replies differ is answered without being written back.
    NoReadBack,
    /// A cascaded deletion is not queued.
    LostQueueRow,
    /// A block whose references fell to zero once is deleted although it is referred to again.
    DeletesReferencedBlock,
    /// A merged page ends where the longest truncated reply ends.
    PageCutTooLate,
    /// A copy by reference does not register its references.
    CopyWithoutReference,
    /// A write that an owner answers "behind" is acknowledged all the same.
    BehindIgnored,
    /// A collection does not say how late its tombstones are.
    FloorNotRaised,
    /// Content is released before what superseded it is known to a quorum.
    ReleasedTooEarly,
    /// Content is released by what one copy of the rows says, in a mode in which requests read one.
    ReleasedByOneCopy,
    /// Content that was superseded when its row came is released before what superseded it is known to a quorum.
    ReleasedOnArrival,
    /// Nobody looks for block files that no reference counts.
    UncountedFilesForgotten,
    /// A queued deletion is taken off the queue although it could not be sent.
    QueueRowTakenOffUnsent,
    /// A node whose database is lost is held to be whole.
    LostDatabaseUnnoticed,
    /// A node whose database is older than its last start is held to be whole.
    OldDatabaseBelieved,
    /// A node that is rebuilding answers quorum reads.
    RebuildingAnswersReads,
    /// A node that is rebuilding judges commits.
    RebuildingJudgesCommits,
    /// A node that is rebuilding lets others compare their rows with its own.
    RebuildingOffersRows,
    /// A node is held to be rebuilt once it has the rows of one owner.
    RebuiltFromOneOwner,
    /// A node is held to be rebuilt while writes may be under way that count on the rows it lost.
    LateWritesMissed,
    /// Tombstones are collected without those owners that cannot be reached.
    CollectedWithoutAllOwners,
    /// Tombstones are collected that only the collecting owner is known to hold.
    TombstonesNotHeld,
    /// Tombstones are dropped before the owners refuse what was sent earlier.
    EpochNotAdvanced,
    /// An owner takes rows that were sent under an epoch it has left behind.
    EpochIgnored,
    /// An owner that returns offers rows that the others may have forgotten.
    ForgottenRowsOffered,
    /// A node that is given a slice again keeps what it has there from an earlier time, and takes it for its own.
    LeftoversKept,
    /// What was read before a collection is read back under the epoch after it.
    ReadBackUnderNewEpoch,
    /// Reads use a new layout version as soon as it is known.
    ReadsBeforeSynced,
    /// Writes go to the owners of the newest layout version only.
    WritesToNewOwnersOnly,
    /// Writes go to the owners of the oldest live layout version only.
    WritesToOldOwnersOnly,
    /// A new owner is held to be synced once it has the rows of one old owner.
    SyncedFromOneOwner,
    /// A layout version is acknowledged while writes that ignore it are running.
    AcknowledgedWhileWriting,
    /// An owner that knows of a newer layout takes writes that a node without a role began under the older one.
    StrangersAdmitted,
    /// A layout version that was rejected in favour of another one with its number stays live.
    RejectedLayoutApplied,
    /// A layout version made late, under a number that is in use, is not rejected.
    LateLayoutApplied,
    /// Of different layout versions with one number, one is put into use before an operator has chosen.
    RivalLayoutApplied,
    /// A stored row is believed although it does not match its checksum.
    DamagedRowsBelieved,
    /// A layout version that keeps two copies of a partition on one node is taken in.
    UnsoundLayoutApplied,
    /// Blocks for a reader are fetched by futures that nobody polls while the reader takes nothing.
    PlacesHeldUnpolled,
    /// A claimant that another was faster than takes its name back from everybody, and erases the other's.
    LoserErasesName,
    /// A claimant asks for its own claim to be accepted, although it was told of another that may be chosen.
    ClaimOverlooked,
    /// A name that this node knows to lead to a deleted bucket is refused without asking the others.
    StaleNameRefused,
    /// A request that takes its closing mark back takes any request's back.
    MarkClearedByOther,
    /// Owners say that a bucket is empty without keeping the closing mark.
    EmptinessWithoutMark,
    /// Copies of objects that are new to an owner pass its closing mark.
    CopiesPassMark,
    /// Who compares its rows with an owner's is not told that the deletion of a bucket was decided there.
    FinalMarkKeptBack,
    /// A block file that is there is held to be good although it cannot be read.
    UnreadableBelieved,
    /// An owner says that it has a block because there is a file, and another deletes its copy on that word.
    HasItUnread,
}

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("planted bugs are for tests: the feature `planted` must not be in a release build");

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is planted on this thread.
#[cfg(feature = "planted")]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never, in a build without them.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}

/// Plants a bug on this thread, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
