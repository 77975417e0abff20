use std::time::Duration;

use clap::{CommandFactory, Parser};
use garage_types::config::SecretFiles;

use super::bucket::BucketCommand;
use super::key::KeyCommand;
use super::layout::LayoutCommand;
use super::value::{Limit, Redundancy};
use super::worker::{RepairArgs, RepairWhat, SetAsideWhat, WorkerCommand};
use super::{Cli, Command, MetaCommand, NodeCommand};

fn parse(line: &str) -> Result<Command, String> {
    let words = std::iter::once("garage").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
}

#[test]
fn the_tree_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn old_and_new_spellings_of_making_a_key_mean_the_same() {
    for line in ["key create web", "key new --name web", "key create --name web", "key new web"] {
        let Ok(Command::Key(KeyCommand::Create(create))) = parse(line) else { panic!("{line}") };
        assert_eq!(create.name(), Some("web"), "{line}");
    }
    let Ok(Command::Key(KeyCommand::Create(create))) = parse("key create --expires-in 1d") else { panic!() };
    assert_eq!((create.name(), create.expires_in), (None, Some(Duration::from_secs(86_400))));
    assert!(parse("key create a --name b").is_err());
}

#[test]
fn a_repair_is_confirmed_before_or_after_its_name() {
    for line in ["repair -a --yes tables", "repair tables --yes -a", "repair --all-nodes tables --yes"] {
        let Ok(Command::Repair(RepairArgs { all_nodes: true, yes: true, what: RepairWhat::Tables })) = parse(line) else {
            panic!("{line}")
        };
    }
    let Ok(Command::Repair(RepairArgs { yes: true, what: RepairWhat::SetAside { command }, .. })) =
        parse("repair set-aside merge ab cd --yes")
    else {
        panic!()
    };
    assert!(matches!(command, SetAsideWhat::Merge(rows) if rows.ids == ["ab", "cd"] && !rows.all));
    assert!(parse("repair set-aside discard --yes").is_err(), "which?");
    assert!(parse("repair set-aside discard --all ab").is_err());
}

#[test]
fn permissions_may_be_given_in_any_order() {
    for line in [
        "bucket allow --read --write b --key k",
        "bucket allow b --read --write --key k",
        "bucket allow --key k --write --read b",
        "bucket allow --key k b --write --read",
    ] {
        let Ok(Command::Bucket(BucketCommand::Allow(allow))) = parse(line) else { panic!("{line}") };
        assert_eq!((allow.bucket.as_str(), allow.key.as_str()), ("b", "k"), "{line}");
        assert_eq!((allow.read, allow.write, allow.owner), (true, true, false), "{line}");
    }
}

#[test]
fn layout_commands_take_their_options_before_or_after_the_node() {
    for line in ["layout assign -z dc1 -c 1G aa -t x -t y", "layout assign aa --zone dc1 --capacity 1G --tag x --tag y"] {
        let Ok(Command::Layout(LayoutCommand::Assign(assign))) = parse(line) else { panic!("{line}") };
        assert_eq!(
            (assign.nodes, assign.zone.as_deref(), assign.capacity),
            (vec!["aa".to_owned()], Some("dc1"), Some(1_000_000_000))
        );
        assert_eq!(assign.tags, ["x", "y"]);
    }
    assert!(matches!(parse("layout apply"), Ok(Command::Layout(LayoutCommand::Apply { version: None }))));
    assert!(matches!(parse("layout apply --version 3"), Ok(Command::Layout(LayoutCommand::Apply { version: Some(3) }))));
    assert!(
        matches!(parse("layout revert --version 3"), Ok(Command::Layout(LayoutCommand::Revert(revert))) if revert.version == Some(3))
    );
    let redundancy = |text: &str| match parse(&format!("layout config -r {text}")) {
        Ok(Command::Layout(LayoutCommand::Config { redundancy })) => redundancy,
        _ => None,
    };
    assert_eq!(redundancy("none"), Some(Redundancy::AtLeast(1)));
    assert_eq!(redundancy("max"), Some(Redundancy::Maximum));
    assert_eq!(redundancy("2"), Some(Redundancy::AtLeast(2)));
    assert_eq!(redundancy("0"), None);
}

#[test]
fn dead_nodes_are_skipped_up_to_a_version_and_conflicts_resolved_by_digest() {
    let Ok(Command::Layout(LayoutCommand::SkipDeadNodes(skip))) =
        parse("layout skip-dead-nodes --version 4 --allow-missing-data --yes")
    else {
        panic!()
    };
    assert_eq!((skip.version, skip.allow_missing_data, skip.yes), (4, true, true));
    assert!(parse("layout skip-dead-nodes").unwrap_err().contains("--version"));
    assert!(matches!(parse("layout resolve ab12"), Ok(Command::Layout(LayoutCommand::Resolve { digest: Some(_) }))));
    assert!(matches!(parse("layout resolve"), Ok(Command::Layout(LayoutCommand::Resolve { digest: None }))));
}

#[test]
fn a_capacity_without_unit_is_refused_with_a_hint() {
    let error = parse("layout assign -z dc1 -c 1 aa").unwrap_err();
    assert!(error.contains("write a unit, such as 1G or 1T"), "{error}");
    assert!(parse("layout assign aa -z dc1 -c 1G -g").unwrap_err().contains("cannot be used with"));
}

#[test]
fn who_forgets_one_of_several_options_is_told_all() {
    for (line, options) in [
        ("bucket set-quotas b", ["--max-size", "--max-objects"]),
        ("key set k", ["--expires-in", "--never-expires"]),
        ("block retry-now", ["HASH", "--all"]),
        ("repair set-aside merge --yes", ["ID", "--all"]),
    ] {
        let error = parse(line).unwrap_err();
        assert!(options.iter().all(|option| error.contains(option)), "{line}: {error}");
    }
    for line in ["key set k --expires-in 1d --never-expires", "block retry-now --all 00"] {
        assert!(parse(line).unwrap_err().contains("cannot be used with"), "{line}");
    }
}

#[test]
fn quotas_need_at_least_one_limit() {
    let Ok(Command::Bucket(BucketCommand::SetQuotas { max_size, max_objects, .. })) =
        parse("bucket set-quotas b --max-size 1GiB")
    else {
        panic!()
    };
    assert_eq!((max_size, max_objects), (Some(Limit::AtMost(1 << 30)), None));
    assert!(parse("bucket set-quotas b --max-objects none").is_ok());
    assert!(parse("bucket set-quotas b").is_err());
}

#[test]
fn older_commands_still_parse() {
    assert!(matches!(parse("node-id -q"), Ok(Command::NodeId(args)) if args.quiet));
    assert!(matches!(parse("stats -a -d"), Ok(Command::Stats(args)) if args.all_nodes));
    assert!(matches!(parse("json-api GetClusterStatus"), Ok(Command::JsonApi(args)) if args.payload == "null"));
    assert!(matches!(parse(&format!("node connect {}@h:1", "ab".repeat(32))), Ok(Command::Node(NodeCommand::Connect { .. }))));
    assert!(parse("node connect abc").unwrap_err().contains("as `garage node id` prints it"));
}

#[test]
fn global_options_are_read_and_secrets_stay_hidden() {
    let words = ["garage", "-s", "abc123", "-c", "/x", "status", "--json", "--allow-world-readable-secrets"];
    let cli = Cli::try_parse_from(words).unwrap();
    assert!(cli.global.json);
    assert_eq!(cli.global.overrides().secret_files, Some(SecretFiles::WorldReadable));
    assert_eq!(cli.global.overrides().rpc_secret.inline.unwrap().expose(), "abc123");
    assert!(!format!("{:?}", cli.global).contains("abc123"));
}

#[test]
fn options_without_effect_are_accepted_and_not_offered() {
    assert!(parse("status --admin-token x --metrics-token-file /y").is_ok());
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("--rpc-secret-file") && !help.contains("admin-token") && !help.contains("metrics-token"), "{help}");
}

#[test]
fn options_of_a_single_node_need_it() {
    assert!(parse("server --dir x").unwrap_err().contains("--single-node"));
    assert!(parse("server --single-node --default-bucket --dir x --s3-bind 127.0.0.1:9000").is_ok());
}

#[test]
fn the_long_version_names_the_engines_of_the_build() {
    assert!(super::VERSION.ends_with(&garage_node::engine::BUILT_IN.join(", ")));
}

#[test]
fn a_conversion_names_both_engines_and_both_places() {
    let parsed = parse("convert-db -a lmdb -i /m/db.lmdb -b redb -o /m/db.redb --lmdb-map-size 2G");
    let Ok(Command::ConvertDb(args)) = parsed else { panic!("{parsed:?}") };
    assert_eq!((args.input_engine.as_str(), args.output_engine.as_str()), ("lmdb", "redb"));
    assert_eq!((args.input.to_str(), args.output.to_str()), (Some("/m/db.lmdb"), Some("/m/db.redb")));
    assert_eq!(args.lmdb_map_size, Some(2_000_000_000));
    assert!(parse("convert-db -a lmdb -i /m/db.lmdb -b redb").is_err());
}

#[test]
fn snapshots_are_of_one_node_or_all() {
    for (line, expected) in [("meta snapshot", false), ("meta snapshot -a", true), ("meta snapshot --all", true)] {
        assert!(matches!(parse(line), Ok(Command::Meta(MetaCommand::Snapshot { all_nodes })) if all_nodes == expected), "{line}");
    }
}

#[test]
fn repairs_take_their_flags_before_or_after_what_is_repaired() {
    for line in ["repair -a --yes blocks", "repair --all-nodes --yes blocks"] {
        let Ok(Command::Repair(RepairArgs { all_nodes: true, yes: true, what: RepairWhat::Blocks })) = parse(line) else {
            panic!("{line}")
        };
    }
    for what in [
        "versions",
        "mpu",
        "block-refs",
        "block_refs",
        "block-rc",
        "block_rc",
        "lost-blocks",
        "damaged-rows",
        "rebalance",
        "tables",
        "aliases",
        "scrub start",
        "scrub cancel",
    ] {
        assert!(parse(&format!("repair --yes {what}")).is_ok(), "{what}");
    }
    assert!(parse("repair --yes").is_err() && parse("repair --yes scrub").is_err());
    assert!(parse("block retry-now").is_err() && parse("block retry-now --all aa").is_err());
    for (line, all) in [("worker list -a", true), ("worker list -b --all-nodes", true), ("worker list -e", false)] {
        assert!(matches!(parse(line), Ok(Command::Worker(WorkerCommand::List { all_nodes, .. })) if all_nodes == all), "{line}");
    }
    let info = parse("worker info -a 7");
    assert!(matches!(info, Ok(Command::Worker(WorkerCommand::Info { id: 7, all_nodes: true }))), "{info:?}");
    assert!(parse("block retry-now --all").is_ok() && parse("worker get -a scrub-tranquility").is_ok());
}
