//! The room for blocks in memory, shared by all bodies that are being written.
//!
//! The first half is for whoever comes: for blocks being read, and for several blocks of one body on their way at once. The other half
//! is kept for one block of each body at a time, so that clients who send slowly never keep all of it: what is in that half is on its
//! way to the owners and leaves by itself.
//! What must stay true: whoever waits for a turn holds no room, or goes on with what gives it back.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ModelError;

/// Bytes of a permit: semaphores do not count far enough to have one for each byte.
const UNIT: usize = 1024;

pub(crate) struct BlockBuffer {
    units: Arc<Semaphore>,
    units_max: usize,
}

impl BlockBuffer {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let units_max = (bytes_max / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        BlockBuffer { units: Arc::new(Semaphore::new(units_max)), units_max }
    }

    /// Bytes taken, and bytes there are.
    pub(crate) fn used(&self) -> (usize, usize) {
        (self.units_max.saturating_sub(self.units.available_permits()) * UNIT, self.units_max * UNIT)
    }

    /// A block longer than all the room has it for itself.
    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).min(self.units_max)).unwrap_or(u32::MAX)
    }

    /// Room for so many bytes, if it is left of the first half and nobody waits.
    pub(crate) fn spare(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = self.units_of(bytes);
        let left_after = self.units.available_permits().checked_sub(units as usize)?;
        if left_after < self.units_max / 2 {
            return None;
        }
        // Taken by another at this moment: as if it had not been there.
        self.units.clone().try_acquire_many_owned(units).ok()
    }

    /// Room for so many bytes, after those who asked before.
    ///
    /// # Errors
    /// [`ModelError::ShuttingDown`].
    pub(crate) fn turn(&self, bytes: usize) -> impl Future<Output = Result<OwnedSemaphorePermit, ModelError>> + Send + 'static {
        let turn = self.units.clone().acquire_many_owned(self.units_of(bytes));
        async move { turn.await.map_err(|_closed| ModelError::ShuttingDown) }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::BlockBuffer;

    const KIB: usize = 1024;

    #[test]
    fn half_of_the_room_is_spare_and_the_other_half_is_had_in_turn() {
        let buffer = BlockBuffer::new(8 * KIB);
        let spare: Vec<_> = std::iter::from_fn(|| buffer.spare(KIB)).collect();
        assert_eq!(spare.len(), 4);
        let turns: Vec<_> = std::iter::from_fn(|| buffer.turn(KIB).now_or_never()).map(Result::unwrap).collect();
        assert_eq!(turns.len(), 4);
        drop(spare);
        assert!(buffer.spare(KIB).is_none(), "what was given back is needed for turns first");
        assert!(buffer.turn(KIB).now_or_never().is_some());
    }

    #[test]
    fn block_longer_than_all_the_room_waits_until_it_is_alone_and_no_longer() {
        let buffer = BlockBuffer::new(4 * KIB);
        let other = buffer.spare(1).unwrap();
        assert!(buffer.spare(100 * KIB).is_none());
        let mut turn = Box::pin(buffer.turn(100 * KIB));
        assert!((&mut turn).now_or_never().is_none());
        drop(other);
        assert!(turn.now_or_never().is_some());
    }
}
