//! Access keys that this node does not have: when a quorum is asked about one, so that strangers cannot make every request a call to half
//! of all nodes.
//!
//! Pure but for the waiters: the time is an argument. What must stay true: a key is refused only after a quorum said that there is none,
//! at most [`ABSENT_MILLIS`] ago; one question about an id is asked at a time; questions about ids that turn out to be unknown are limited
//! per second; what is remembered of unknown ids is bounded, and kept apart from what is remembered of good ones.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use garage_types::{KeyId, Timestamp};
use tokio::sync::oneshot;

/// How long a quorum's word that there is no such key counts. A key made meanwhile is refused for so long by a node that did not
/// receive it.
pub(crate) const ABSENT_MILLIS: u64 = 3_000;
const ABSENT_MAX: usize = 1_000;
/// Questions about unknown ids that may come at once, and how soon another may be asked.
const QUESTIONS_MAX: u64 = 100;
const MILLIS_PER_QUESTION: u64 = 50;

/// What to do about an id that is not known here.
pub(crate) enum Miss<'a> {
    /// A quorum said so just now.
    Absent,
    /// Somebody asks about this id already: look again after this ends, however it ends.
    Asking(oneshot::Receiver<()>),
    Ask(Question<'a>),
    /// Too many unknown ids were asked about.
    TooMany,
}

#[derive(Default)]
pub(crate) struct Misses(Mutex<State>);

#[derive(Default)]
struct State {
    /// Until when each is known to be absent.
    absent: HashMap<KeyId, Timestamp>,
    /// The same in the order in which they were found out.
    order: VecDeque<(Timestamp, KeyId)>,
    /// Ids that are being asked about, and who waits for the answer.
    asking: HashMap<KeyId, Vec<oneshot::Sender<()>>>,
    /// Questions asked of late; one less every [`MILLIS_PER_QUESTION`].
    asked: u64,
    /// Up to when `asked` was lowered.
    lowered: Timestamp,
}

/// The right, and the duty, to ask about an id. Dropped without an answer, the next who waits asks.
pub(crate) struct Question<'a> {
    misses: &'a Misses,
    id: KeyId,
}

impl Misses {
    pub(crate) fn look(&self, id: &KeyId, now: Timestamp) -> Miss<'_> {
        let mut state = self.state();
        state.forget_old(now);
        if state.absent.contains_key(id) {
            return Miss::Absent;
        }
        if let Some(waiting) = state.asking.get_mut(id) {
            let (told, answer) = oneshot::channel();
            waiting.push(told);
            return Miss::Asking(answer);
        }
        if state.asked >= QUESTIONS_MAX {
            return Miss::TooMany;
        }
        state.asked += 1;
        state.asking.insert(id.clone(), Vec::new());
        Miss::Ask(Question { misses: self, id: id.clone() })
    }

    /// Every change under this lock is whole before anything can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_old(&mut self, now: Timestamp) {
        while let Some((until, id)) = self.order.front()
            && (*until <= now || self.order.len() > ABSENT_MAX)
        {
            self.absent.remove(id);
            self.order.pop_front();
        }
        let passed = now.as_millis().saturating_sub(self.lowered.as_millis()) / MILLIS_PER_QUESTION;
        if passed > 0 {
            self.asked = self.asked.saturating_sub(passed);
            self.lowered = if self.asked == 0 { now } else { self.lowered.plus_millis(passed * MILLIS_PER_QUESTION) };
        }
    }
}

impl Question<'_> {
    /// A quorum knows the key after all: such questions are not limited.
    pub(crate) fn found(self) {
        let mut state = self.misses.state();
        state.asked = state.asked.saturating_sub(1);
    }

    /// A quorum says that there is no such key.
    pub(crate) fn absent(self, now: Timestamp) {
        let until = now.plus_millis(ABSENT_MILLIS);
        let mut state = self.misses.state();
        state.absent.insert(self.id.clone(), until);
        state.order.push_back((until, self.id.clone()));
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        // The senders end with this, in the order in which their receivers came.
        drop(self.misses.state().asking.remove(&self.id));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use garage_types::{KeyId, Timestamp};

    use super::{ABSENT_MAX, ABSENT_MILLIS, MILLIS_PER_QUESTION, Miss, Misses, QUESTIONS_MAX, Question};

    fn id(n: u64) -> KeyId {
        KeyId::parse(&format!("GK{n:024x}")).unwrap()
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    fn ask(misses: &Misses, n: u64, millis: u64) -> Option<Question<'_>> {
        match misses.look(&id(n), at(millis)) {
            Miss::Ask(question) => Some(question),
            Miss::Absent | Miss::Asking(_) | Miss::TooMany => None,
        }
    }

    #[test]
    fn an_absent_key_is_asked_about_once_in_a_while() {
        let misses = Misses::default();
        ask(&misses, 1, 0).unwrap().absent(at(0));
        assert!(matches!(misses.look(&id(1), at(ABSENT_MILLIS - 1)), Miss::Absent));
        assert!(ask(&misses, 1, ABSENT_MILLIS).is_some());
    }

    #[test]
    fn who_asks_about_the_same_key_waits_for_the_one_answer() {
        let misses = Misses::default();
        let question = ask(&misses, 1, 0).unwrap();
        let Miss::Asking(mut answer) = misses.look(&id(1), at(0)) else { panic!("asked twice") };
        assert!((&mut answer).now_or_never().is_none());
        question.absent(at(0));
        assert!(answer.now_or_never().is_some(), "it looks again");
        assert!(matches!(misses.look(&id(1), at(0)), Miss::Absent));
        // A question that failed is another's to ask.
        drop(ask(&misses, 2, 0).unwrap());
        assert!(ask(&misses, 2, 0).is_some());
    }

    #[test]
    fn a_flood_of_unknown_keys_is_limited_and_found_ones_are_not() {
        let misses = Misses::default();
        for n in 0..10 * QUESTIONS_MAX {
            ask(&misses, n, 0).unwrap().found();
        }
        for n in 0..QUESTIONS_MAX {
            ask(&misses, n, 0).unwrap().absent(at(0));
        }
        assert!(matches!(misses.look(&id(QUESTIONS_MAX), at(0)), Miss::TooMany));
        assert!(matches!(misses.look(&id(1), at(0)), Miss::Absent), "what is known needs no question");
        ask(&misses, QUESTIONS_MAX, MILLIS_PER_QUESTION).unwrap().absent(at(0));
        assert!(matches!(misses.look(&id(QUESTIONS_MAX + 1), at(MILLIS_PER_QUESTION)), Miss::TooMany));
        let hours = 3_600_000;
        for n in 0..5 * ABSENT_MAX as u64 {
            ask(&misses, n, hours + n * MILLIS_PER_QUESTION).unwrap().absent(at(hours + n * MILLIS_PER_QUESTION));
        }
        assert!(misses.state().absent.len() <= ABSENT_MAX);
    }
}
