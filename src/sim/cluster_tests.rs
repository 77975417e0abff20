//! Fixed seeds of every scenario, and the runner of more (`script/simulate`).

use crate::scenario::{Outcome, SCENARIOS, Scenario, run, scenario};

fn passes(scenario: Scenario, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let Outcome { violations, trace, .. } = run(scenario, seed);
        let name = scenario.name;
        assert!(
            violations.is_empty(),
            "{}\nscenario {name}, seed {seed}: {violations:#?}\nreplay: script/simulate --scenario {name} --from {seed} --seeds 1",
            trace.join("\n")
        );
    }
}

#[test]
fn nothing_goes_wrong_in_a_calm_cluster() {
    passes(scenario("calm"), 0..6);
}

#[test]
fn promises_hold_while_the_network_fails() {
    passes(scenario("network"), 0..10);
}

#[test]
fn promises_hold_whatever_fails() {
    passes(scenario("everything"), 0..14);
}

#[test]
fn promises_hold_where_all_want_the_same_key() {
    passes(scenario("crowd"), 0..10);
}

#[test]
fn listings_agree_with_the_keys() {
    passes(scenario("listing"), 0..4);
}

#[test]
fn uploads_in_parts_end_once_and_whole() {
    passes(scenario("uploads"), 0..10);
}

#[test]
fn promises_hold_on_five_machines() {
    passes(scenario("five"), 0..8);
}

#[test]
fn promises_hold_on_one_machine() {
    passes(scenario("single"), 0..20);
}

#[test]
fn a_seed_replays_a_run_exactly() {
    for name in ["everything", "five"] {
        let (first, second) = (run(scenario(name), 7), run(scenario(name), 7));
        for (index, line) in first.trace.iter().enumerate() {
            assert_eq!(Some(line), second.trace.get(index), "{name}, line {index}");
        }
        assert_eq!(first.trace.len(), second.trace.len());
    }
}

/// Driven by the environment: SIMULATE_SCENARIO, SIMULATE_FROM, SIMULATE_SEEDS.
#[test]
#[ignore = "runs as many seeds as one likes; see script/simulate"]
fn simulate() {
    if let Ok(filter) = std::env::var("SIMULATE_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (from, seeds) = (number("SIMULATE_FROM", 0), number("SIMULATE_SEEDS", 100));
    let wanted = std::env::var("SIMULATE_SCENARIO").ok();
    let mut failed = 0;
    for scenario in SCENARIOS.iter().filter(|scenario| wanted.as_deref().is_none_or(|wanted| wanted == scenario.name)) {
        let started = std::time::Instant::now();
        for seed in from..from + seeds {
            let Outcome { violations, trace, tally } = run(*scenario, seed);
            if std::env::var("SIMULATE_TRACE").is_ok() || !violations.is_empty() && failed == 0 {
                println!("{}", trace.join("\n"));
            }
            if !violations.is_empty() {
                failed += 1;
                println!("FAILED {} seed {seed}: {violations:#?}", scenario.name);
                println!("replay: script/simulate --scenario {} --from {seed} --seeds 1", scenario.name);
            }
            println!("{} seed {seed}: {tally:?}", scenario.name);
        }
        println!("{}: {seeds} seeds in {:?}, {failed} failed so far", scenario.name, started.elapsed());
    }
    assert_eq!(failed, 0, "seeds with violations");
}
