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
    /// Content is released before what superseded it is known to a quorum.
    ReleasedTooEarly,
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
