//! Bytes that are held for clients until they take or send something, and who makes way when there are too many of them.
//!
//! Must stay true: all together hold the budget at most, or twice as much while none of them stands still, or one holds more alone; whoever
//! has made no progress for the longest time makes way first, so that a client which goes on, however slowly, outlives those that stand
//! still; who waits for nobody's client makes no way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// All holders of one kind. Clones are the same.
#[derive(Clone)]
pub struct StallBudget {
    held: Arc<Mutex<Held>>,
    bytes_max: usize,
}

#[derive(Default)]
struct Held {
    /// Of holders, so that they differ.
    next_id: u64,
    bytes: usize,
    /// Those that wait for their clients, by when there was progress last.
    waiting: BTreeMap<Progress, Holder>,
}

type Progress = (Instant, u64);

struct Holder {
    bytes: usize,
    make_way: MakeWay,
}

type MakeWay = Box<dyn FnOnce() + Send>;

/// Bytes in a budget, until they are dropped or make way.
pub struct Stall {
    budget: StallBudget,
    bytes: usize,
    /// Changed only under the budget's lock.
    state: Mutex<StallState>,
}

enum StallState {
    /// For its client, unless it had to make way.
    Waiting(Progress),
    /// For others, who need no client for it.
    Busy(Holder),
}

/// There is no room now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Since when the one that stands still longest has done so.
    pub oldest: Option<Instant>,
}

impl StallBudget {
    pub fn new(bytes_max: usize) -> Self {
        StallBudget { held: Arc::default(), bytes_max }
    }

    /// Holds so many bytes, for which those make way that stand still since before `stalled_before`, and beyond twice the budget others too.
    /// `make_way`: called, from any thread, when others need them.
    pub fn hold(&self, bytes: usize, now: Instant, stalled_before: Instant, make_way: impl FnOnce() + Send + 'static) -> Stall {
        let mut held = self.held();
        let mut gone = held.make_room(bytes, self.bytes_max, Some(stalled_before));
        gone.append(&mut held.make_room(bytes, self.bytes_max.saturating_mul(2), None));
        let stall = self.add(&mut held, bytes, now, Box::new(make_way));
        drop(held);
        gone.into_iter().for_each(|make_way| make_way());
        stall
    }

    /// Holds so many bytes, if there is room for them or will be once those have made way that stand still since before `stalled_before`.
    ///
    /// # Errors
    /// [`NoRoom`]; then nobody makes way.
    pub fn try_hold(
        &self,
        bytes: usize,
        now: Instant,
        stalled_before: Instant,
        make_way: impl FnOnce() + Send + 'static,
    ) -> Result<Stall, NoRoom> {
        let mut held = self.held();
        let stalled: usize = held.waiting.range(..(stalled_before, 0)).map(|(_progress, holder)| holder.bytes).sum();
        let stays = held.bytes - stalled;
        if stays > 0 && stays + bytes > self.bytes_max {
            return Err(NoRoom { oldest: held.waiting.first_key_value().map(|((since, _id), _holder)| *since) });
        }
        let gone = held.make_room(bytes, self.bytes_max, Some(stalled_before));
        let stall = self.add(&mut held, bytes, now, Box::new(make_way));
        drop(held);
        gone.into_iter().for_each(|make_way| make_way());
        Ok(stall)
    }

    /// Those that stand still longest, since before `stalled_before`, make way for so many bytes; nobody does, if they do not have as many.
    pub fn evict(&self, bytes: usize, stalled_before: Instant) {
        let mut held = self.held();
        let (mut gives, mut gone) = (0, Vec::new());
        for (progress, holder) in held.waiting.range(..(stalled_before, 0)) {
            if gives >= bytes {
                break;
            }
            gives += holder.bytes;
            gone.push(*progress);
        }
        if gives < bytes {
            return;
        }
        held.bytes -= gives;
        let gone: Vec<Holder> = gone.iter().filter_map(|progress| held.waiting.remove(progress)).collect();
        drop(held);
        gone.into_iter().for_each(|holder| (holder.make_way)());
    }

    fn add(&self, held: &mut Held, bytes: usize, now: Instant, make_way: MakeWay) -> Stall {
        held.next_id += 1;
        let progress = (now, held.next_id);
        held.bytes += bytes;
        held.waiting.insert(progress, Holder { bytes, make_way });
        Stall { budget: self.clone(), bytes, state: Mutex::new(StallState::Waiting(progress)) }
    }

    /// Bytes that can be held before anybody has to make way.
    pub fn left(&self) -> usize {
        self.bytes_max.saturating_sub(self.held().bytes)
    }

    /// Every change under this lock is whole before anything can panic.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Takes out those that make way for so many more bytes.
    fn make_room(&mut self, bytes: usize, bytes_max: usize, stalled_before: Option<Instant>) -> Vec<MakeWay> {
        let mut gone = Vec::new();
        while self.bytes > 0 && self.bytes + bytes > bytes_max {
            let Some(oldest) = self.waiting.first_entry() else { break };
            if stalled_before.is_some_and(|before| oldest.key().0 >= before) {
                break;
            }
            let holder = oldest.remove();
            self.bytes -= holder.bytes;
            gone.push(holder.make_way);
        }
        gone
    }
}

impl Stall {
    /// The client has taken or sent something. Returns whether the bytes are still held: not if they had to make way.
    pub fn note_progress(&self, now: Instant) -> bool {
        let mut held = self.budget.held();
        let mut state = self.state();
        let StallState::Waiting(progress) = &mut *state else { return true };
        let Some(holder) = held.waiting.remove(progress) else { return false };
        progress.0 = now;
        held.waiting.insert(*progress, holder);
        true
    }

    /// From now on it waits for no client any more, and makes no way.
    pub fn note_busy(&self) {
        let mut held = self.budget.held();
        let mut state = self.state();
        if let StallState::Waiting(progress) = *state
            && let Some(holder) = held.waiting.remove(&progress)
        {
            *state = StallState::Busy(holder);
        }
    }

    /// It waits for its client again.
    pub fn note_waiting(&self, now: Instant) {
        let mut held = self.budget.held();
        let mut state = self.state();
        if matches!(*state, StallState::Busy(_)) {
            held.next_id += 1;
            let progress = (now, held.next_id);
            if let StallState::Busy(holder) = std::mem::replace(&mut *state, StallState::Waiting(progress)) {
                held.waiting.insert(progress, holder);
            }
        }
    }

    /// Every change under this lock is whole before anything can panic.
    fn state(&self) -> MutexGuard<'_, StallState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut held = self.budget.held();
        let is_there = match &*self.state() {
            StallState::Waiting(progress) => held.waiting.remove(progress).is_some(),
            StallState::Busy(_) => true,
        };
        if is_there {
            held.bytes -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::{NoRoom, Stall, StallBudget};

    const BYTES_MAX: usize = 12;

    struct One {
        stall: Stall,
        made_way: Arc<AtomicBool>,
    }

    struct Test {
        budget: StallBudget,
        began: Instant,
    }

    impl Test {
        fn new() -> Self {
            Test { budget: StallBudget::new(BYTES_MAX), began: Instant::now() }
        }

        fn at(&self, second: u64) -> Instant {
            self.began + Duration::from_secs(second)
        }

        fn hold(&self, bytes: usize, second: u64) -> One {
            let made_way = Arc::new(AtomicBool::new(false));
            let told = made_way.clone();
            let make_way = move || told.store(true, Ordering::Relaxed);
            One { stall: self.budget.hold(bytes, self.at(second), self.at(second), make_way), made_way }
        }

        fn try_hold(&self, bytes: usize, second: u64, stalled_before: u64) -> Result<Stall, NoRoom> {
            self.budget.try_hold(bytes, self.at(second), self.at(stalled_before), || ())
        }
    }

    fn made_way(all: &[&One]) -> Vec<bool> {
        all.iter().map(|one| one.made_way.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn who_stands_still_longest_makes_way_and_who_is_done_costs_nobody() {
        let test = Test::new();
        let (done, first, second) = (test.hold(4, 0), test.hold(4, 1), test.hold(4, 1));
        assert_eq!(test.budget.left(), 0);
        drop(done.stall);
        let third = test.hold(4, 2);
        assert_eq!(made_way(&[&first, &second, &third]), [false; 3]);
        let fourth = test.hold(4, 3);
        assert_eq!(made_way(&[&first, &second, &third, &fourth]), [true, false, false, false]);
        drop((first, second, third, fourth));
        assert_eq!(test.budget.left(), BYTES_MAX);
        assert!(test.budget.held().waiting.is_empty());
    }

    #[test]
    fn who_goes_on_outlives_who_came_later_and_stands_still() {
        let test = Test::new();
        let (goes_on, stands) = (test.hold(6, 0), test.hold(6, 1));
        goes_on.stall.note_progress(test.at(2));
        let new = test.hold(6, 3);
        assert_eq!(made_way(&[&goes_on, &stands, &new]), [false, true, false]);
        stands.stall.note_progress(test.at(4));
        assert_eq!(test.budget.left(), 0, "who had to make way stays away");
        drop(stands);
        assert_eq!(test.budget.left(), 0);
    }

    #[test]
    fn more_than_all_is_held_alone() {
        let test = Test::new();
        let (small, large) = (test.hold(1, 0), test.hold(2 * BYTES_MAX, 0));
        assert_eq!(made_way(&[&small, &large]), [true, false]);
    }

    #[test]
    fn while_all_go_on_they_have_twice_as_much_and_no_more() {
        let test = Test::new();
        let all: Vec<One> = (0..5).map(|_| test.hold(BYTES_MAX / 2, 1)).collect();
        assert_eq!(made_way(&all.iter().collect::<Vec<_>>()), [true, false, false, false, false]);
        let _later = test.hold(BYTES_MAX / 2, 2);
        assert_eq!(made_way(&all.iter().collect::<Vec<_>>()), [true, true, true, true, false], "those that stand still");
    }

    #[test]
    fn whoever_asks_only_for_what_stands_still_disturbs_nobody_else() {
        let test = Test::new();
        let (old, busy, new) = (test.hold(4, 0), test.hold(4, 1), test.hold(4, 5));
        busy.stall.note_busy();
        assert_eq!(test.try_hold(4, 6, 0).err(), Some(NoRoom { oldest: Some(test.at(0)) }));
        assert_eq!(test.try_hold(6, 6, 5).err(), Some(NoRoom { oldest: Some(test.at(0)) }), "half of what it needs helps nobody");
        assert_eq!(made_way(&[&old, &busy, &new]), [false; 3]);
        let _held = test.try_hold(4, 6, 5).ok().unwrap();
        assert_eq!(made_way(&[&old, &busy, &new]), [true, false, false]);
        drop(new);
        assert!(test.try_hold(4, 7, 5).is_ok(), "what was given back is there");
        drop((old, busy));
        assert_eq!(test.budget.left(), BYTES_MAX - 4);
    }

    #[test]
    fn as_many_are_evicted_as_it_needs_and_only_who_stands_still() {
        let test = Test::new();
        let (first, second, busy) = (test.hold(2, 1), test.hold(3, 2), test.hold(1, 0));
        busy.stall.note_busy();
        test.budget.evict(1, test.at(1));
        test.budget.evict(3, test.at(2));
        test.budget.evict(6, test.at(9));
        assert_eq!(made_way(&[&first, &second, &busy]), [false; 3], "too little helps nobody");
        test.budget.evict(1, test.at(9));
        assert_eq!(made_way(&[&first, &second, &busy]), [true, false, false]);
        assert_eq!(test.budget.left(), BYTES_MAX - 4);
        assert!(!first.stall.note_progress(test.at(9)) && busy.stall.note_progress(test.at(9)));
        let third = test.hold(4, 3);
        test.budget.evict(4, test.at(9));
        assert_eq!(made_way(&[&second, &third, &busy]), [true, true, false]);
        assert_eq!(test.budget.left(), BYTES_MAX - 1);
    }

    #[test]
    fn where_all_are_busy_nobody_makes_way() {
        let test = Test::new();
        let busy = test.hold(BYTES_MAX, 0);
        busy.stall.note_busy();
        assert_eq!(test.try_hold(1, 9, 9).err(), Some(NoRoom { oldest: None }));
        busy.stall.note_waiting(test.at(8));
        assert_eq!(test.try_hold(1, 9, 8).err(), Some(NoRoom { oldest: Some(test.at(8)) }));
        assert!(test.try_hold(1, 9, 9).is_ok());
        assert_eq!(made_way(&[&busy]), [true]);
    }
}
