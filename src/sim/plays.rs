//! Everything that can be run by a seed, by its name: random scenarios and stories.

use crate::scenario::{Flaw, Outcome, SCENARIOS, Scenario, run_flawed};
use crate::stories::{STORIES, Story, tell};

#[derive(Clone, Copy)]
pub enum Play {
    Scenario(Scenario),
    Story(Story),
}

impl Play {
    pub fn all() -> impl Iterator<Item = Play> {
        SCENARIOS.into_iter().map(Play::Scenario).chain(STORIES.into_iter().map(Play::Story))
    }

    pub fn named(name: &str) -> Play {
        Play::all().find(|play| play.name() == name).unwrap_or_else(|| panic!("there is no scenario or story {name}"))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Play::Scenario(scenario) => scenario.name,
            Play::Story(story) => story.name,
        }
    }

    /// Runs it by a seed, from an empty cluster to the last check.
    pub fn run(self, seed: u64, flaw: Option<Flaw>) -> Outcome {
        match self {
            Play::Scenario(scenario) => run_flawed(scenario, seed, flaw),
            Play::Story(story) => tell(story, seed, flaw),
        }
    }
}
