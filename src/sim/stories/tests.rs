//! Fixed seeds of every story, with nothing planted.

use super::{STORIES, tell};
use crate::scenario::Outcome;

/// Seeds of each story.
const SEEDS: u64 = 2;

#[test]
fn every_story_ends_well() {
    for story in STORIES {
        for seed in 0..SEEDS {
            let Outcome { violations, trace, .. } = tell(story, seed, None);
            let name = story.name;
            assert!(
                violations.is_empty(),
                "{}\nstory {name}, seed {seed}: {violations:#?}\nreplay: script/simulate --scenario {name} --from {seed} --seeds 1",
                trace.join("\n")
            );
        }
    }
}
