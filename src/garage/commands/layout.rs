//! `garage layout …`: what the options mean is decided by pure functions; the node only checks and stages.

use garage_admin::cluster::{ClusterStatus, GetClusterStatus};
use garage_admin::layout::{
    ApplyClusterLayout, GetClusterLayout, Layout, LayoutParameters, LayoutPreview, PreviewClusterLayoutChanges,
    RevertClusterLayout, RoleChange, UpdateClusterLayout, ZoneRedundancy,
};
use garage_admin::layout_history::{ClusterLayoutSkipDeadNodes, GetClusterLayoutHistory, ResolveClusterLayout, SkippedNodes};
use garage_admin::search;
use garage_types::NodeId;
use serde::Serialize;

use crate::args::layout::{AssignArgs, LayoutCommand, RevertArgs, SkipArgs};
use crate::args::value::Redundancy;
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::Output;
use crate::show::{layout as show, layout_history};

pub(super) async fn run(daemon: &Daemon, command: LayoutCommand, output: Output) -> Result<(), CliError> {
    match command {
        LayoutCommand::Assign(args) => {
            let status = daemon.call(GetClusterStatus).await?;
            let layout = daemon.call(GetClusterLayout).await?;
            stage(daemon, assignment(&args, &layout, &status)?, output).await
        }
        LayoutCommand::Remove { node } => {
            let status = daemon.call(GetClusterStatus).await?;
            let layout = daemon.call(GetClusterLayout).await?;
            let change = RoleChange::removal(find(&node, &layout, &status)?);
            stage(daemon, UpdateClusterLayout { roles: vec![change], parameters: None }, output).await
        }
        LayoutCommand::Config { redundancy } => {
            let parameters = Some(parameters(redundancy)?);
            stage(daemon, UpdateClusterLayout { roles: Vec::new(), parameters }, output).await
        }
        LayoutCommand::Show => show_layout(daemon, output).await,
        LayoutCommand::Apply { version } => {
            let layout = daemon.call(GetClusterLayout).await?;
            let applied = daemon.call(ApplyClusterLayout { version: version_to_apply(version, &layout)? }).await?;
            output.reply(&applied, |applied| {
                let version = applied.layout.version;
                format!(
                    "{}\n\nLayout version {version} is in force. What is stored moves to where it wants it, metadata first: see garage layout history.\n",
                    applied.message.join("\n")
                )
            })
        }
        LayoutCommand::Revert(args) => {
            let layout = daemon.call(GetClusterLayout).await?;
            may_revert(&args, &layout)?;
            if !layout.has_staged() {
                return output.reply(&layout, |_layout| "Nothing is staged.\n".to_owned());
            }
            let layout = daemon.call(RevertClusterLayout).await?;
            output.reply(&layout, |_layout| "The staged changes are dropped.\n".to_owned())
        }
        LayoutCommand::History => {
            let history = daemon.call(GetClusterLayoutHistory).await?;
            output.reply(&history, layout_history::history)
        }
        LayoutCommand::SkipDeadNodes(args) => skip_dead_nodes(daemon, &args, output).await,
        LayoutCommand::Resolve { digest: None } => {
            let history = daemon.call(GetClusterLayoutHistory).await?;
            output.reply(&history.conflicts, |conflicts| layout_history::conflicts(conflicts))
        }
        LayoutCommand::Resolve { digest: Some(digest) } => {
            let layout = daemon.call(ResolveClusterLayout { digest }).await?;
            output.reply(&layout, |layout| {
                format!("The chosen layout is now version {}; the others are given up. Tell their author.\n", layout.version)
            })
        }
    }
}

async fn stage(daemon: &Daemon, update: UpdateClusterLayout, output: Output) -> Result<(), CliError> {
    let layout = daemon.call(update).await?;
    output.reply(&layout, |layout| {
        if !layout.conflicts.is_empty() {
            return "Staged. Before it can be applied, choose between the layouts in conflict: garage layout resolve\n"
                .to_owned();
        }
        let next = layout.version + 1;
        format!("Staged. To see what it would do: garage layout show. To make it so: garage layout apply --version {next}\n")
    })
}

async fn skip_dead_nodes(daemon: &Daemon, args: &SkipArgs, output: Output) -> Result<(), CliError> {
    let SkipArgs { version, allow_missing_data, yes: _ } = *args;
    may_skip(args)?;
    let skipped = daemon.call(ClusterLayoutSkipDeadNodes { version, allow_missing_data }).await?;
    something_skipped(&skipped, args)?;
    output.reply(&skipped, layout_history::skipped)
}

fn may_skip(args: &SkipArgs) -> Result<(), CliError> {
    let what = "with --allow-missing-data, what only the nodes that are not connected have is lost, and what others have yet to receive \
        is not found until it has come";
    super::confirmed(args.yes || !args.allow_missing_data, what)
}

/// # Errors
/// [`CliError::Usage`] when nothing changed: what to do instead.
fn something_skipped(skipped: &SkippedNodes, args: &SkipArgs) -> Result<(), CliError> {
    let SkippedNodes { ack_updated, sync_updated, sync_ack_updated } = skipped;
    if !(ack_updated.is_empty() && sync_updated.is_empty() && sync_ack_updated.is_empty()) {
        return Ok(());
    }
    let instead = if args.allow_missing_data {
        "wait for the nodes that are connected, see `garage layout history`"
    } else {
        "no dead node holds up the others now. Wait for those that are connected; or, if a dead node had metadata still to \
         receive, take its role away with `garage layout remove`, or accept the loss with --allow-missing-data --yes"
    };
    Err(CliError::Usage(format!("nothing was changed: {instead}")))
}

async fn show_layout(daemon: &Daemon, output: Output) -> Result<(), CliError> {
    let layout = daemon.call(GetClusterLayout).await?;
    let preview = if layout.has_staged() { Some(daemon.call(PreviewClusterLayoutChanges).await?) } else { None };
    output.reply(&ShownLayout { layout, preview }, |shown| show::show(&shown.layout, shown.preview.as_ref()))
}

/// What `layout show` prints as JSON: the layout, and if something is staged, what would come of it.
#[derive(Serialize)]
struct ShownLayout {
    #[serde(flatten)]
    layout: Layout,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<LayoutPreview>,
}

/// The node that a typed prefix means, among all that are connected, have a role, or have one staged.
fn find(prefix: &str, layout: &Layout, status: &ClusterStatus) -> Result<NodeId, CliError> {
    let known = status.nodes.iter().map(|node| node.id);
    let with_role = layout.roles.iter().map(|role| role.id);
    let staged = layout.staged_role_changes.iter().map(|change| change.id);
    Ok(search::node(prefix, known.chain(with_role).chain(staged))?)
}

/// What a node keeps when an option is left out: its staged role, else its present one.
fn inherited(node: NodeId, layout: &Layout) -> Option<RoleChange> {
    if let Some(staged) = layout.staged_role_changes.iter().find(|change| change.id == node) {
        return Some(staged.clone()).filter(|staged| !staged.remove);
    }
    let role = layout.roles.iter().find(|role| role.id == node)?;
    Some(RoleChange {
        id: node,
        remove: false,
        zone: Some(role.zone.clone()),
        tags: Some(role.tags.clone()),
        capacity: role.capacity,
    })
}

/// The role of a node whose place another takes, even when its removal is staged already.
fn role_of(node: NodeId, layout: &Layout) -> Option<RoleChange> {
    inherited(node, &Layout { staged_role_changes: Vec::new(), ..layout.clone() })
}

/// What `layout assign` asks for.
fn assignment(args: &AssignArgs, layout: &Layout, status: &ClusterStatus) -> Result<UpdateClusterLayout, CliError> {
    let mut roles = Vec::new();
    let replaced = args.replace.iter().map(|prefix| find(prefix, layout, status)).collect::<Result<Vec<_>, _>>()?;
    // One for one: the new node does what the old one did, unless options say otherwise.
    let model = match (args.nodes.as_slice(), replaced.as_slice()) {
        ([_new], [old]) => role_of(*old, layout),
        _ => None,
    };
    for prefix in &args.nodes {
        let node = find(prefix, layout, status)?;
        let before = inherited(node, layout).or_else(|| model.clone());
        let capacity = match (args.capacity, args.gateway, &before) {
            (Some(bytes), _, _) => Some(bytes),
            (None, true, _) => None,
            (None, false, Some(before)) => before.capacity,
            (None, false, None) => return Err(CliError::CapacityNeeded { node }),
        };
        let tags = if args.tags.is_empty() {
            before.as_ref().and_then(|before| before.tags.clone()).unwrap_or_default()
        } else {
            args.tags.clone()
        };
        let zone = args.zone.clone().or_else(|| before.and_then(|before| before.zone));
        let zone = Some(zone.ok_or(CliError::ZoneNeeded { node })?);
        roles.push(RoleChange { id: node, remove: false, zone, tags: Some(tags), capacity });
    }
    for node in replaced {
        if roles.iter().any(|change| change.id == node) {
            return Err(CliError::Usage(format!("node {node} cannot be given a role and be replaced at once")));
        }
        roles.push(RoleChange::removal(node));
    }
    Ok(UpdateClusterLayout { roles, parameters: None })
}

fn parameters(redundancy: Option<Redundancy>) -> Result<LayoutParameters, CliError> {
    let zone_redundancy = match redundancy {
        Some(Redundancy::Maximum) => ZoneRedundancy::Maximum,
        Some(Redundancy::AtLeast(zones)) => ZoneRedundancy::AtLeast(zones),
        None => {
            return Err(CliError::Usage("nothing to change: say how copies are spread with -r maximum or -r NUMBER".to_owned()));
        }
    };
    Ok(LayoutParameters { zone_redundancy })
}

fn version_to_apply(given: Option<u64>, layout: &Layout) -> Result<u64, CliError> {
    let next = layout.version + 1;
    given.ok_or_else(|| {
        CliError::Usage(format!(
            "look at what would change with `garage layout show`, then confirm with `garage layout apply --version {next}`"
        ))
    })
}

fn may_revert(args: &RevertArgs, layout: &Layout) -> Result<(), CliError> {
    let next = layout.version + 1;
    match args.version {
        Some(version) if version != next => {
            Err(CliError::Usage(format!("the staged changes would become version {next}, not {version}. Nothing was changed.")))
        }
        Some(_next) => Ok(()),
        None => super::confirmed(args.yes, "this drops all staged changes of the layout"),
    }
}

#[cfg(test)]
mod tests {
    use garage_admin::cluster::{ClusterNode, ClusterStatus};
    use garage_admin::layout::{Layout, LayoutParameters, RoleChange, RoleInfo, ZoneRedundancy};
    use garage_admin::layout_history::SkippedNodes;
    use garage_types::NodeId;

    use super::{assignment, may_revert, may_skip, parameters, something_skipped, version_to_apply};
    use crate::args::layout::{AssignArgs, RevertArgs, SkipArgs};

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    /// Nodes 01 (with a role) and 02 (with a staged one) and 03 (staged to go) and 04 (removed, staged again).
    fn layout() -> Layout {
        let role = |byte| RoleInfo {
            id: id(byte),
            zone: "paris".into(),
            tags: vec!["old".into()],
            capacity: Some(1 << 40),
            stored_partitions: None,
            usable_capacity: None,
        };
        let staged =
            |byte, capacity| RoleChange { id: id(byte), remove: false, zone: Some("lyon".into()), tags: Some(vec![]), capacity };
        Layout {
            version: 3,
            roles: vec![role(1), role(3)],
            parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
            partition_size: 0,
            staged_role_changes: vec![staged(2, None), RoleChange::removal(id(3))],
            staged_parameters: None,
            conflicts: vec![],
        }
    }

    fn stranger(byte: u8) -> ClusterNode {
        ClusterNode {
            id: id(byte),
            garage_version: None,
            addr: None,
            hostname: None,
            is_up: true,
            last_seen_secs_ago: None,
            latency_ms: None,
            role: None,
            draining: false,
            data_partition: None,
            metadata_partition: None,
            moves: None,
            replication_factor: None,
            consistency_mode: None,
            twin_addresses: vec![],
        }
    }

    fn assign(nodes: &[&str]) -> AssignArgs {
        AssignArgs {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            zone: None,
            capacity: None,
            gateway: false,
            tags: vec![],
            replace: vec![],
        }
    }

    fn plan(args: &AssignArgs) -> Result<Vec<RoleChange>, String> {
        let status = ClusterStatus {
            layout_version: 3,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes: vec![],
            layout_conflicts: vec![],
            departed: vec![],
            waiting: vec![],
        };
        assignment(args, &layout(), &status).map(|update| update.roles).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_is_inherited() {
        let changes = plan(&AssignArgs { tags: vec!["new".into()], ..assign(&["01", "02"]) }).unwrap();
        assert_eq!((changes[0].zone.as_deref(), changes[0].capacity), (Some("paris"), Some(1 << 40)));
        assert_eq!((changes[1].zone.as_deref(), changes[1].capacity), (Some("lyon"), None), "the staged role counts");
        assert_eq!(changes[0].tags, Some(vec!["new".to_owned()]));
        let gateway = plan(&AssignArgs { gateway: true, ..assign(&["01"]) }).unwrap();
        assert_eq!((gateway[0].capacity, gateway[0].tags.as_deref()), (None, Some(&["old".to_owned()][..])));
    }

    #[test]
    fn a_node_without_a_role_needs_zone_and_capacity() {
        assert!(plan(&assign(&["03"])).unwrap_err().contains("-c SIZE"), "its removal is staged: nothing to inherit");
        assert!(plan(&AssignArgs { capacity: Some(1 << 40), ..assign(&["03"]) }).unwrap_err().contains("-z ZONE"));
        assert!(plan(&AssignArgs { capacity: Some(1 << 40), zone: Some("z".into()), ..assign(&["03"]) }).is_ok());
        assert!(plan(&assign(&["0"])).unwrap_err().contains("3 nodes match"));
    }

    #[test]
    fn a_replaced_node_is_removed() {
        let changes = plan(&AssignArgs { replace: vec!["03".into()], ..assign(&["01"]) }).unwrap();
        assert_eq!(changes[1], RoleChange::removal(id(3)));
        assert!(plan(&AssignArgs { replace: vec!["01".into()], ..assign(&["01"]) }).is_err());
    }

    #[test]
    fn a_node_that_replaces_another_one_inherits_its_role() {
        let status = ClusterStatus {
            layout_version: 3,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes: vec![stranger(9)],
            layout_conflicts: vec![],
            departed: vec![],
            waiting: vec![],
        };
        let plan = |args: &AssignArgs| assignment(args, &layout(), &status).map(|update| update.roles);
        let changes = plan(&AssignArgs { replace: vec!["03".into()], ..assign(&["09"]) }).unwrap();
        let zone_and_capacity = |change: &RoleChange| (change.zone.clone(), change.capacity);
        assert_eq!(zone_and_capacity(&changes[0]), (Some("paris".to_owned()), Some(1 << 40)));
        assert_eq!(changes[1], RoleChange::removal(id(3)));
        let smaller = plan(&AssignArgs { capacity: Some(1 << 30), replace: vec!["03".into()], ..assign(&["09"]) }).unwrap();
        assert_eq!(zone_and_capacity(&smaller[0]), (Some("paris".to_owned()), Some(1 << 30)));
        let two_for_one = plan(&AssignArgs { replace: vec!["03".into()], ..assign(&["09", "02"]) });
        assert!(two_for_one.is_err(), "who gets how much is not clear");
    }

    #[test]
    fn changes_are_confirmed_by_the_next_version() {
        assert_eq!(version_to_apply(Some(9), &layout()).unwrap(), 9, "the node refuses a wrong one");
        assert!(version_to_apply(None, &layout()).unwrap_err().to_string().contains("apply --version 4"));
        let revert = |yes, version| may_revert(&RevertArgs { yes, version }, &layout());
        assert!(revert(true, None).is_ok() && revert(false, Some(4)).is_ok());
        assert!(revert(false, None).unwrap_err().to_string().contains("--yes"));
        assert!(revert(true, Some(3)).unwrap_err().to_string().contains("version 4, not 3"));
        assert!(parameters(None).is_err());
    }

    fn skip(allow_missing_data: bool, yes: bool) -> SkipArgs {
        SkipArgs { version: 4, allow_missing_data, yes }
    }

    #[test]
    fn missing_data_are_accepted_by_a_word_of_its_own() {
        assert!(may_skip(&skip(false, false)).is_ok() && may_skip(&skip(true, true)).is_ok());
        assert!(may_skip(&skip(true, false)).unwrap_err().to_string().contains("is lost"));
    }

    #[test]
    fn a_skip_that_changed_nothing_says_what_to_do_instead() {
        let outcome = |ack_updated, allow_missing_data| {
            let skipped = SkippedNodes { ack_updated, sync_updated: vec![], sync_ack_updated: vec![] };
            something_skipped(&skipped, &skip(allow_missing_data, true)).map_err(|error| error.to_string())
        };
        assert!(outcome(vec![], false).unwrap_err().contains("--allow-missing-data"));
        assert!(outcome(vec![], true).unwrap_err().contains("wait for the nodes"));
        assert!(outcome(vec![id(1)], false).is_ok());
    }
}
