//! Access keys that this node does not have: when a quorum is asked about one, so that strangers cannot make every request a call to half
//! of all nodes.
//!
//! Pure but for the waiters: the time is an argument, and not that of the day, which somebody may set back.
//!
//! Must stay true: a key is refused only after a quorum said that there is none, at most [`ABSENT`] ago; one question about an id is
//! asked at a time; questions about ids that turn out to be unknown are limited per second; what is remembered of unknown ids is
//! bounded, and kept apart from what is remembered of good ones.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garage_types::KeyId;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a quorum's word that there is no such key counts. A key made meanwhile is refused for so long by a node that did not
/// receive it.
pub(crate) const ABSENT: Duration = Duration::from_secs(3);
const ABSENT_MAX: usize = 1_000;
/// Questions about unknown ids that may come at once, and how soon another may be asked.
const QUESTIONS_MAX: u64 = 100;
const TIME_PER_QUESTION: Duration = Duration::from_millis(50);

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
    absent: HashMap<KeyId, Instant>,
    /// The same in the order in which they were found out.
    order: VecDeque<(Instant, KeyId)>,
    /// Ids that are being asked about, and who waits for the answer.
    asking: HashMap<KeyId, Vec<oneshot::Sender<()>>>,
    /// Questions asked of late; one less every [`TIME_PER_QUESTION`].
    asked: u64,
    /// Up to when `asked` was lowered.
    lowered: Option<Instant>,
}

/// The right, and the duty, to ask about an id. Dropped without an answer, the next who waits asks.
pub(crate) struct Question<'a> {
    misses: &'a Misses,
    id: KeyId,
}

impl Misses {
    pub(crate) fn look(&self, id: &KeyId, now: Instant) -> Miss<'_> {
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
    fn forget_old(&mut self, now: Instant) {
        while let Some((until, id)) = self.order.front()
            && (*until <= now || self.order.len() > ABSENT_MAX)
        {
            self.absent.remove(id);
            self.order.pop_front();
        }
        let lowered = *self.lowered.get_or_insert(now);
        let passed = now.saturating_duration_since(lowered).as_millis() / TIME_PER_QUESTION.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed > 0 {
            self.asked = self.asked.saturating_sub(u64::from(passed));
            self.lowered = Some(if self.asked == 0 { now } else { lowered + TIME_PER_QUESTION * passed });
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
    pub(crate) fn absent(self, now: Instant) {
        let until = now + ABSENT;
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
    use std::time::Duration;

    use futures_util::FutureExt;
    use garage_types::KeyId;
    use tokio::time::Instant;

    use super::{ABSENT, ABSENT_MAX, Miss, Misses, QUESTIONS_MAX, Question, TIME_PER_QUESTION};

    fn id(n: u64) -> KeyId {
        KeyId::parse(&format!("GK{n:024x}")).unwrap()
    }

    fn ask(misses: &Misses, n: u64, now: Instant) -> Option<Question<'_>> {
        match misses.look(&id(n), now) {
            Miss::Ask(question) => Some(question),
            Miss::Absent | Miss::Asking(_) | Miss::TooMany => None,
        }
    }

    #[test]
    fn an_absent_key_is_asked_about_once_in_a_while() {
        let (misses, now) = (Misses::default(), Instant::now());
        ask(&misses, 1, now).unwrap().absent(now);
        assert!(matches!(misses.look(&id(1), now + ABSENT - Duration::from_millis(1)), Miss::Absent));
        assert!(ask(&misses, 1, now + ABSENT).is_some());
    }

    #[test]
    fn who_asks_about_the_same_key_waits_for_the_one_answer() {
        let (misses, now) = (Misses::default(), Instant::now());
        let question = ask(&misses, 1, now).unwrap();
        let Miss::Asking(mut answer) = misses.look(&id(1), now) else { panic!("asked twice") };
        assert!((&mut answer).now_or_never().is_none());
        question.absent(now);
        assert!(answer.now_or_never().is_some(), "it looks again");
        assert!(matches!(misses.look(&id(1), now), Miss::Absent));
        // A question that failed is another's to ask.
        drop(ask(&misses, 2, now).unwrap());
        assert!(ask(&misses, 2, now).is_some());
    }

    #[test]
    fn a_flood_of_unknown_keys_is_limited_and_found_ones_are_not() {
        let (misses, now) = (Misses::default(), Instant::now());
        for n in 0..10 * QUESTIONS_MAX {
            ask(&misses, n, now).unwrap().found();
        }
        for n in 0..QUESTIONS_MAX {
            ask(&misses, n, now).unwrap().absent(now);
        }
        assert!(matches!(misses.look(&id(QUESTIONS_MAX), now), Miss::TooMany));
        assert!(matches!(misses.look(&id(1), now), Miss::Absent), "what is known needs no question");
        ask(&misses, QUESTIONS_MAX, now + TIME_PER_QUESTION).unwrap().absent(now);
        assert!(matches!(misses.look(&id(QUESTIONS_MAX + 1), now + TIME_PER_QUESTION), Miss::TooMany));
        for n in 0..5 * ABSENT_MAX as u64 {
            let later = now + Duration::from_secs(3600) + TIME_PER_QUESTION * n as u32;
            ask(&misses, n, later).unwrap().absent(later);
        }
        assert!(misses.state().absent.len() <= ABSENT_MAX);
    }
}
