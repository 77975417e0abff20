//! Fixed seeds of every scenario, and the runner of more (`script/simulate`).

use crate::planted_tests::flaw_named;
use crate::plays::Play;
use crate::scenario::{Outcome, Scenario, run, scenario};

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
    passes(scenario("network"), 0..12);
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
fn promises_hold_while_operators_change_the_layout() {
    passes(scenario("layouts"), 0..2);
}

#[test]
fn promises_hold_while_the_layout_changes_and_machines_fail() {
    passes(scenario("upheaval"), 0..2);
}

#[test]
fn nothing_acknowledged_is_lost_where_one_copy_answers_reads() {
    passes(scenario("degraded"), 0..6);
}

#[test]
fn nothing_acknowledged_is_lost_where_one_copy_takes_writes() {
    passes(scenario("dangerous"), 0..6);
}

#[test]
fn promises_hold_for_clients_that_speak_s3() {
    passes(scenario("s3"), 0..4);
    passes(scenario("s3-calm"), 0..1);
}

#[test]
fn promises_hold_while_machines_lose_what_they_have() {
    passes(scenario("losses"), 0..2);
}

#[test]
fn promises_hold_whatever_fails_is_lost_or_moves() {
    passes(scenario("all"), 0..2);
}

/// The trace of a run in a process of its own, as a replay is: some counters of libraries go on through the runs of one process.
fn trace_of(scenario: &str, seed: u64) -> Vec<String> {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new(this)
        .args(["--ignored", "--nocapture", "--exact", "cluster_tests::simulate"])
        .env("SIMULATE_SCENARIO", scenario)
        .env("SIMULATE_FROM", seed.to_string())
        .env("SIMULATE_SEEDS", "1")
        .env("SIMULATE_TRACE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines = String::from_utf8(output.stdout).unwrap();
    let timed = |line: &&str| line.trim_start().split_once("s ").is_some_and(|(time, _)| time.parse::<f64>().is_ok());
    lines.lines().filter(timed).map(str::to_owned).collect()
}

#[test]
fn a_seed_replays_a_run_exactly() {
    // Not `s3`, only because its runs are longer.
    for name in ["everything", "five"] {
        let (first, second) = (trace_of(name, 7), trace_of(name, 7));
        assert!(first.len() > 50, "{name}: a trace of {} lines", first.len());
        for (index, line) in first.iter().enumerate() {
            assert_eq!(Some(line), second.get(index), "{name}, line {index}");
        }
        assert_eq!(first.len(), second.len());
    }
}

/// Log lines carry the time of the run, as the trace does.
struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:>9.3}s", crate::history::elapsed().as_secs_f64())
    }
}

/// Driven by the environment: SIMULATE_SCENARIO, SIMULATE_FROM, SIMULATE_SEEDS; SIMULATE_FLAW: with this bug planted.
#[test]
#[ignore = "runs as many seeds as one likes; see script/simulate"]
fn simulate() {
    if let Ok(filter) = std::env::var("SIMULATE_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime).with_ansi(false).with_test_writer().init();
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (from, seeds) = (number("SIMULATE_FROM", 0), number("SIMULATE_SEEDS", 100));
    let wanted = std::env::var("SIMULATE_SCENARIO").ok();
    let flaw = std::env::var("SIMULATE_FLAW").ok().map(|name| flaw_named(&name));
    let mut failed = 0;
    for play in Play::all().filter(|play| wanted.as_deref().is_none_or(|wanted| wanted == play.name())) {
        let name = play.name();
        let started = std::time::Instant::now();
        for seed in from..from + seeds {
            let Outcome { violations, trace, tally } = play.run(seed, flaw);
            if std::env::var("SIMULATE_TRACE").is_ok() || !violations.is_empty() && failed == 0 {
                println!("{}", trace.join("\n"));
            }
            if !violations.is_empty() {
                failed += 1;
                println!("FAILED {name} seed {seed}: {violations:#?}");
                println!("replay: script/simulate --scenario {name} --from {seed} --seeds 1");
            }
            println!("{name} seed {seed}: {tally:?}");
        }
        println!("{name}: {seeds} seeds in {:?}, {failed} failed so far", started.elapsed());
    }
    assert_eq!(failed, 0, "seeds with violations");
}
