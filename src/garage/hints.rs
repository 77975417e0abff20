//! What to type instead of a command that does not exist.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A sentence that helps whoever typed `error`'s words, if we know what they meant.
///
/// `words`: the command line, the program's name left out.
pub fn hint(error: &clap::Error, words: &[String]) -> Option<&'static str> {
    if error.kind() == ErrorKind::UnknownArgument {
        let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidArg) else { return None };
        return misplaced_option(wrong);
    }
    if error.kind() == ErrorKind::InvalidValue && words.iter().all(|word| word == "-h") {
        return Some("to get help: garage --help");
    }
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(wrong)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let position = words.iter().position(|word| word == wrong)?;
    // Options may stand between a command and its subcommand.
    let group = words[..position].iter().rev().find(|word| GROUPS.contains(&word.as_str()));
    instead_of(group.map_or("", String::as_str), wrong)
}

/// Options that belong before the command.
fn misplaced_option(wrong: &str) -> Option<&'static str> {
    match wrong {
        "-c" | "--config" => Some("the configuration file stands before the command: garage -c FILE COMMAND"),
        "-h" => Some("to get help: --help (-h names the daemon to talk to, before the command: garage -h PEER COMMAND)"),
        "--rpc-host" => Some("the daemon to talk to stands before the command: garage --rpc-host PEER COMMAND"),
        "-s" | "--rpc-secret" => Some("the RPC secret stands before the command, or in GARAGE_RPC_SECRET"),
        _ => None,
    }
}

const GROUPS: [&str; 10] = ["node", "layout", "bucket", "key", "worker", "block", "repair", "scrub", "set-aside", "meta"];

/// A flat table: the group, the wrong word, what to type.
fn instead_of(group: &str, wrong: &str) -> Option<&'static str> {
    let hint = match (group, wrong) {
        ("", "start" | "run" | "daemon" | "serve") => "to run the daemon: garage server",
        ("", "nodes" | "ls" | "cluster") => "to see the nodes: garage status",
        ("", "connect") => "to connect to a node: garage node connect <node id>@<host>:<port>",
        ("", "init" | "setup" | "dev") => "to try Garage on this machine: garage server --single-node --default-bucket",
        ("", "assign" | "apply" | "revert") => "to change the layout: garage layout assign, apply or revert",
        ("", "buckets" | "create-bucket" | "mb") => "to list or make buckets: garage bucket list, garage bucket create NAME",
        ("", "keys" | "create-key" | "user" | "users") => "to list or make access keys: garage key list, garage key create NAME",
        ("", "statistics" | "df" | "du" | "usage") => "to see what is stored and what is free: garage stats -a",
        ("", "history" | "skip-dead-nodes" | "resolve") => {
            "that belongs to the layout: garage layout history, skip-dead-nodes or resolve"
        }
        ("", "peers" | "health" | "ping") => "to see the nodes: garage status",
        ("", "snapshot" | "snapshots" | "backup") => "to copy the metadata: garage meta snapshot --all",
        ("", "restore" | "recover") => {
            "to put a snapshot back, stop the node and copy it in the place of its database; see doc/operations.md"
        }
        ("", "workers" | "jobs" | "tasks") => "to list background jobs: garage worker list",
        ("", "blocks") => "to look at single blocks: garage block list-errors, garage block info HASH",
        ("", "scrub" | "rebalance" | "fsck" | "check" | "set-aside") => {
            "that is a repair: garage repair --yes WHAT; see garage repair --help"
        }
        ("", "drain" | "decommission" | "remove") => "to take a node out: garage layout remove NODE, then garage layout apply",
        ("", "accept-database") => "that belongs to a node: garage node accept-database",
        ("", "objects" | "inspect" | "inspect-object") => {
            "to see what is stored under a key: garage bucket inspect-object BUCKET KEY"
        }
        ("", "convert" | "migrate-db") => "to move the metadata to another engine: garage convert-db",
        ("", "migrate") => "there is nothing to migrate: that command belonged to older versions",
        ("", "admin-token" | "admin-api-schema" | "admin") => {
            "the administration interface over HTTP, and its tokens, are absent from this version; this command line needs none, and garage json-api calls the same operations"
        }
        ("", "offline-repair") => {
            "absent from this version, which counts objects in the transaction that changes them: garage bucket info BUCKET"
        }
        ("", "website" | "websites" | "web") | ("bucket", "website" | "web") => "websites are absent from this version",
        ("" | "bucket", "lifecycle" | "expire" | "expiration") | ("repair", "lifecycle") => {
            "lifecycle rules are absent from this version; to give up unfinished uploads: garage bucket cleanup-incomplete-uploads BUCKET"
        }
        ("" | "bucket", "cors") => "CORS is absent from this version: let a proxy in front of it answer",
        ("" | "bucket", "versioning" | "versions") => "versioning is absent from this version: an object has one version",
        ("bucket", "policy" | "acl") => {
            "policies and ACLs are absent; keys get permissions: garage bucket allow BUCKET --key KEY --read"
        }
        ("", "k2v") => "K2V is absent from this version",
        ("", "metrics" | "trace") => "metrics and traces are absent from this version; to see what nodes store: garage stats -a",
        ("node", "configure") => "roles are given with: garage layout assign NODE -z ZONE -c CAPACITY",
        ("node", "add" | "join") => "to connect to a node: garage node connect <node id>@<host>:<port>",
        ("node", "stats" | "info") => "to see what nodes store: garage stats, or garage stats -a for all of them",
        ("node", "list" | "ls" | "status") => "to see the nodes: garage status",
        ("node", "accept" | "recover" | "rebuild" | "restore") => {
            "a node rebuilds its database by itself; when all were lost or put back at once: garage node accept-database"
        }
        ("node", "remove" | "rm" | "delete" | "drain" | "decommission") => {
            "to take a node out: garage layout remove NODE, then garage layout apply"
        }
        ("layout", "list" | "status" | "get" | "info") => "to see the layout: garage layout show",
        ("layout", "commit" | "save") => "to make staged changes: garage layout apply --version N",
        ("layout", "add" | "set") => "to give a node a role: garage layout assign NODE -z ZONE -c CAPACITY",
        ("layout", "rm" | "delete" | "unassign") => "to take a node's role away: garage layout remove NODE",
        ("layout", "replace") => "to put a node in another's place: garage layout assign NEW -z ZONE -c CAPACITY --replace OLD",
        ("layout", "versions" | "log" | "progress") => "to see past and live versions: garage layout history",
        ("layout", "skip" | "skip-dead" | "skip-dead-node" | "force") => {
            "to go on without nodes that are gone: garage layout skip-dead-nodes --version N"
        }
        ("layout", "choose" | "pick" | "merge" | "fix") => {
            "to choose between layouts with one number: garage layout resolve DIGEST"
        }
        ("layout", "preview" | "plan" | "diff") => "to see what staged changes would do: garage layout show",
        ("layout", "redundancy" | "parameters") => "to set how copies are spread: garage layout config -r maximum",
        ("layout", "cancel" | "clear" | "reset") => "to drop staged changes: garage layout revert --yes",
        ("bucket", "new" | "add" | "make" | "mk") => "to make a bucket: garage bucket create NAME",
        ("bucket", "rm" | "remove" | "del") => "to delete a bucket: garage bucket delete BUCKET --yes",
        ("bucket", "ls") => "to list buckets: garage bucket list",
        ("bucket", "show" | "get" | "describe") => "to see a bucket: garage bucket info BUCKET",
        ("bucket", "quota" | "quotas" | "set-quota") => "to limit a bucket: garage bucket set-quotas BUCKET --max-size SIZE",
        ("bucket", "grant") => "to let a key in: garage bucket allow BUCKET --key KEY --read --write",
        ("bucket", "revoke") => "to shut a key out: garage bucket deny BUCKET --key KEY --read --write --owner",
        ("bucket", "inspect" | "objects" | "stat") => {
            "to see a bucket: garage bucket info BUCKET; what is stored under a key: garage bucket inspect-object BUCKET KEY"
        }
        ("bucket", "cleanup" | "cleanup-uploads" | "abort-uploads") => {
            "to give up unfinished uploads: garage bucket cleanup-incomplete-uploads BUCKET"
        }
        ("bucket", "rename") => {
            "give it another name, then take the old one away: garage bucket alias BUCKET NEW, garage bucket unalias OLD"
        }
        ("key", "add" | "generate" | "make") => "to make an access key: garage key create NAME",
        ("key", "rm" | "remove" | "del") => "to delete an access key: garage key delete KEY --yes",
        ("worker", "ls" | "show" | "status" | "stats") => "to list background jobs: garage worker list",
        ("worker", "tranquility" | "throttle" | "speed") => "to make a job lighter: garage worker set resync-tranquility N",
        ("worker", "pause" | "stop" | "cancel") => "of the jobs, the scrub can be paused: garage repair --yes scrub pause",
        ("repair", "all" | "everything") => "repairs are ordered one by one: garage repair --help lists them",
        ("repair", "metadata" | "sync" | "table" | "anti-entropy") => "to compare all metadata: garage repair --yes tables",
        ("repair", "block" | "resync") => "to fetch what is missing: garage repair --yes blocks",
        ("repair", "refs" | "block-references") => "to remove references of what is deleted: garage repair --yes block-refs",
        ("repair", "rc" | "counts" | "refcounts") => "to count references anew: garage repair --yes block-rc",
        ("repair", "version") => "to remove contents that nothing has: garage repair --yes versions",
        ("repair", "alias" | "names" | "bucket-aliases") => "to put names right: garage repair --yes aliases",
        ("repair", "start" | "pause" | "resume" | "cancel") => "that belongs to the scrub: garage repair --yes scrub start",
        ("repair", "setaside" | "aside") => "to see rows that were set aside: garage repair set-aside list",
        ("scrub", "stop" | "abort") => "to stop a scrub: garage repair --yes scrub pause, or cancel",
        ("scrub", "continue" | "go") => "to go on with a scrub: garage repair --yes scrub resume",
        ("scrub", "status" | "info" | "show") => "to see the last and the next scrub: garage worker get",
        ("set-aside", "ls") => "to list rows that were set aside: garage repair set-aside list",
        ("set-aside", "info" | "get") => "to see a row that was set aside: garage repair set-aside show ID",
        ("set-aside", "restore" | "accept" | "bring-back") => "to bring rows back: garage repair set-aside merge --yes ID",
        ("set-aside", "delete" | "rm" | "remove" | "drop") => "to let rows go: garage repair set-aside discard --yes ID",
        ("meta", "backup" | "copy" | "snapshots" | "create") => "to copy the metadata: garage meta snapshot",
        ("meta", "list" | "ls") => "snapshots are directories in metadata_snapshots_dir, named by their time",
        ("meta", "restore") => {
            "to put a snapshot back, stop the node and copy it in the place of its database; see doc/operations.md"
        }
        ("block", "show" | "get") => "to see who refers to a block: garage block info HASH",
        ("block", "retry") => "to try failed blocks again: garage block retry-now --all",
        ("block", "delete" | "rm" | "remove") => "to give up blocks that are lost: garage block purge --yes HASH",
        ("key", "secret" | "show-secret") => "to see a secret: garage key info --show-secret KEY",
        ("key", "grant") => "to let a key use a bucket: garage bucket allow BUCKET --key KEY --read --write",
        ("block", "list" | "ls" | "errors") => "to list blocks that failed: garage block list-errors",
        ("key", "ls") => "to list access keys: garage key list",
        ("key", "show" | "get" | "describe") => "to see an access key: garage key info KEY",
        _ => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{GROUPS, hint, instead_of};
    use crate::args::Cli;

    fn hint_for(line: &str) -> Option<&'static str> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let error = Cli::try_parse_from(std::iter::once("garage".to_owned()).chain(words.clone())).unwrap_err();
        hint(&error, &words)
    }

    /// Every command that has others below it.
    fn groups_of(command: &clap::Command, found: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| sub.has_subcommands()) {
            found.push(sub.get_name().to_owned());
            groups_of(sub, found);
        }
    }

    #[test]
    fn every_group_of_commands_has_hints_and_no_hint_is_for_a_command_that_there_is() {
        let (mut found, mut known) = (Vec::new(), GROUPS.map(str::to_owned).to_vec());
        groups_of(&Cli::command(), &mut found);
        found.sort();
        known.sort();
        assert_eq!(found, known);
        let command = Cli::command();
        let below = |group: &str| command.find_subcommand(group).cloned();
        for group in GROUPS.iter().filter_map(|group| below(group)).chain([command.clone()]) {
            for name in group.get_subcommands().map(clap::Command::get_name) {
                let group = if group.get_name() == "garage" { "" } else { group.get_name() };
                assert_eq!(instead_of(group, name), None, "{group} {name} exists");
            }
        }
    }

    #[test]
    fn a_wrong_command_says_what_to_type_instead() {
        assert_eq!(hint_for("start"), Some("to run the daemon: garage server"));
        assert_eq!(
            hint_for("-c /x node configure abc"),
            Some("roles are given with: garage layout assign NODE -z ZONE -c CAPACITY")
        );
        assert_eq!(hint_for("bucket --json rm x"), Some("to delete a bucket: garage bucket delete BUCKET --yes"));
        assert!(hint_for("layout skip --version 3").is_some_and(|hint| hint.contains("skip-dead-nodes --version N")));
        assert!(hint_for("layout replace a b").is_some_and(|hint| hint.contains("--replace OLD")));
        assert!(hint_for("df").is_some_and(|hint| hint.contains("garage stats -a")));
        for absent in
            ["offline-repair --yes object_counters", "admin-token list", "k2v", "web", "metrics", "bucket website --allow b"]
        {
            assert!(hint_for(absent).is_some_and(|hint| hint.contains("absent")), "{absent}");
        }
        for absent in ["cors", "lifecycle", "versioning"].map(|what| format!("bucket {what} b")) {
            assert!(hint_for(&absent).is_some_and(|hint| hint.contains("absent")), "{absent}");
        }
        assert!(hint_for("status -c /x").is_some_and(|hint| hint.contains("garage -c FILE COMMAND")));
        assert!(hint_for("bucket list -h").is_some_and(|hint| hint.contains("--help")));
        assert!(hint_for("repair -a --yes rc").is_some_and(|hint| hint.contains("repair --yes block-rc")));
        assert!(hint_for("repair set-aside rm x").is_some_and(|hint| hint.contains("discard")));
        assert!(hint_for("repair --yes scrub stop").is_some_and(|hint| hint.contains("scrub pause")));
        assert!(hint_for("meta restore").is_some_and(|hint| hint.contains("stop the node")));
        assert_eq!(hint_for("-h"), Some("to get help: garage --help"));
        assert_eq!(hint_for("xyzzy"), None);
        assert_eq!(hint_for("bucket create"), None);
    }
}
