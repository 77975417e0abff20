//! `garage layout history`, `skip-dead-nodes` and `resolve`

use std::collections::BTreeMap;

use garage_admin::layout_history::{LayoutConflict, LayoutHistoryInfo, SkippedNodes, TrackerInfo, VersionStatus};
use garage_types::NodeId;

use super::layout::roles;
use super::{heading, moves, named, row, table};

/// Past and live versions.
pub fn history(history: &LayoutHistoryInfo) -> String {
    let mut text = heading("LAYOUT HISTORY");
    if history.versions.is_empty() {
        return text + "There is no layout yet: see garage status for the nodes, then garage layout assign.\n";
    }
    let count = |number| history.versions.iter().filter(|version| version.version == number).count();
    let is_ambiguous = history.versions.iter().any(|version| count(version.version) > 1);
    let mut rows = vec![row(["Version", "Status", "Storage nodes", "Gateway nodes"])];
    rows.extend(history.versions.iter().map(|version| {
        let is_in_conflict = history.conflicts.iter().any(|conflict| conflict.version == version.version);
        let status = match version.status {
            VersionStatus::Current if is_in_conflict => "In conflict",
            VersionStatus::Current => "Current",
            VersionStatus::Draining => "Draining",
            VersionStatus::Historical => "Historical",
        };
        vec![
            format!("#{}", version.version),
            status.to_owned(),
            version.storage_nodes.to_string(),
            version.gateway_nodes.to_string(),
        ]
    }));
    if is_ambiguous {
        let digests = history.versions.iter().map(|version| short(version.digest.as_deref().unwrap_or("?")).to_owned());
        for (row, digest) in rows.iter_mut().zip(std::iter::once("Digest".to_owned()).chain(digests)) {
            row.push(digest);
        }
    }
    text += &table(&rows);
    text += "\n";
    if !history.conflicts.is_empty() {
        return text + &conflicts(&history.conflicts);
    }
    text += &match &history.update_trackers {
        None => "Only the current version is live: metadata are where it wants them.\n".to_owned(),
        Some(known) => trackers(known) + "\n" + &advice(history),
    };
    let has_left = |node: &NodeId| history.departed.iter().any(|left| left.id == *node);
    let staying = history.moves.iter().filter(|(node, _moves)| !has_left(node)).map(|(node, moves)| (*node, moves));
    let moving = moves::moving(staying, usize::MAX);
    if moving.is_empty() && history.update_trackers.is_none() {
        text += "All blocks are where it wants them, as far as the nodes that can be asked tell.\n";
    }
    for section in [moving, moves::departed(history.departed.iter())].iter().filter(|section| !section.is_empty()) {
        text += "\n";
        text += section;
    }
    text
}

fn trackers(trackers: &BTreeMap<NodeId, TrackerInfo>) -> String {
    let number = |version: u64| format!("#{version}");
    let mut rows = vec![row(["Node", "Ack", "Sync", "Sync_ack"])];
    let tracker = |(node, tracker): (&NodeId, &TrackerInfo)| {
        vec![node.short(), number(tracker.ack), number(tracker.sync), number(tracker.sync_ack)]
    };
    rows.extend(trackers.iter().map(tracker));
    heading("UPDATE TRACKERS") + &table(&rows)
}

/// What to do when it takes too long. A skip is told of only where somebody may be dead: it costs what nodes have yet to receive.
fn advice(history: &LayoutHistoryInfo) -> String {
    let version = history.current_version;
    let mut text = "Metadata are moving to where the current version wants them.\n".to_owned();
    if history.disconnected.is_empty() {
        return text
            + "Every node is connected: the move goes on by itself. A node whose numbers stay behind is slow or rebuilds: see garage status.\n";
    }
    text += &format!("Not connected: {}. Bring them back, and it goes on.\n", named(&history.disconnected));
    if history.min_ack >= version {
        text += &format!(
            "If nodes are gone for good, take their roles away with garage layout remove. If they had metadata that nobody else has,\n\
             accept the loss:  garage layout skip-dead-nodes --version {version} --allow-missing-data --yes\n"
        );
    } else {
        text += &format!("If nodes are gone for good, go on without them:  garage layout skip-dead-nodes --version {version}\n");
    }
    text
}

/// As many digits of a digest as tell it from others.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// The layouts to choose from.
pub fn conflicts(conflicts: &[LayoutConflict]) -> String {
    if conflicts.is_empty() {
        return "No two layouts have one number: nothing has to be chosen.\n".to_owned();
    }
    let mut text = String::new();
    for conflict in conflicts {
        text += &format!(
            "Two operators applied different changes as version {}. Data are written by both; nothing else moves on until one is chosen.\n\n",
            conflict.version
        );
        for candidate in &conflict.layouts {
            let digest = short(&candidate.digest);
            text += &heading(&format!("LAYOUT {} WITH DIGEST {digest}", conflict.version));
            text += &roles(&candidate.layout);
            text += &format!("\nTo keep this one:  garage layout resolve {digest}\n\n");
        }
    }
    text
}

/// Whom a skip moved on.
pub fn skipped(skipped: &SkippedNodes) -> String {
    let list = |title: &str, nodes: &[NodeId]| match nodes {
        [] => String::new(),
        nodes => {
            let lines: Vec<String> = nodes.iter().map(|node| format!("  {}\n", node.short())).collect();
            format!("{title}\n{}", lines.concat())
        }
    };
    list("Moved on without waiting for them to know the version (ACK):", &skipped.ack_updated)
        + &list("Moved on without waiting for metadata they had to receive (SYNC):", &skipped.sync_updated)
        + &list("Moved on without waiting for them to read there (SYNC_ACK):", &skipped.sync_ack_updated)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_admin::layout::{Layout, LayoutParameters, ZoneRedundancy};
    use garage_admin::layout_history::{
        ConflictingLayout, LayoutConflict, LayoutHistoryInfo, SkippedNodes, TrackerInfo, VersionInfo, VersionStatus,
    };
    use garage_admin::moves::NodeMoves;
    use garage_types::NodeId;

    use super::{conflicts, history, skipped};

    fn info() -> LayoutHistoryInfo {
        let version = |version, status| VersionInfo {
            version,
            digest: None,
            status,
            storage_nodes: 3,
            gateway_nodes: usize::from(version > 3),
        };
        LayoutHistoryInfo {
            current_version: 5,
            min_ack: 5,
            versions: vec![
                version(5, VersionStatus::Current),
                version(4, VersionStatus::Draining),
                version(3, VersionStatus::Historical),
            ],
            update_trackers: Some(BTreeMap::from([(
                NodeId::from_bytes([0xa; 32]),
                TrackerInfo { ack: 5, sync: 4, sync_ack: 4 },
            )])),
            disconnected: vec![NodeId::from_bytes([0xa; 32])],
            conflicts: vec![],
            moves: BTreeMap::new(),
            departed: vec![],
        }
    }

    #[test]
    fn before_the_first_layout_nothing_is_said_to_be_in_place() {
        let text = history(&LayoutHistoryInfo { current_version: 0, versions: vec![], update_trackers: None, ..info() });
        assert!(text.contains("There is no layout yet") && !text.contains("Only the current version"), "{text}");
    }

    #[test]
    fn a_settled_history_says_that_it_is() {
        let settled = LayoutHistoryInfo { update_trackers: None, ..info() };
        let text = history(&settled);
        assert!(
            text.contains("Only the current version is live") && text.contains("All blocks are where it wants them"),
            "{text}"
        );
        let moves = NodeMoves { blocks_to_fetch: 7, ..NodeMoves::default() };
        let text = history(&LayoutHistoryInfo { moves: BTreeMap::from([(NodeId::from_bytes([0xa; 32]), moves)]), ..settled });
        assert!(text.contains("0a0a0a0a0a0a0a0a  7 blocks") && !text.contains("All blocks"), "{text}");
    }

    #[test]
    fn versions_and_trackers_are_tables_with_advice() {
        let text = history(&info());
        let expected = "==== LAYOUT HISTORY ====\n\
                        Version  Status      Storage nodes  Gateway nodes\n\
                        #5       Current     3              1\n\
                        #4       Draining    3              1\n\
                        #3       Historical  3              0\n\
                        \n\
                        ==== UPDATE TRACKERS ====\n\
                        Node              Ack  Sync  Sync_ack\n\
                        0a0a0a0a0a0a0a0a  #5   #4    #4\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("skip-dead-nodes --version 5 --allow-missing-data --yes\n"), "{text}");
        assert!(text.contains("Not connected: 0a0a0a0a0a0a0a0a."), "{text}");
        let healthy = history(&LayoutHistoryInfo { disconnected: vec![], ..info() });
        assert!(healthy.contains("goes on by itself") && !healthy.contains("skip-dead-nodes"), "{healthy}");
        let unknown = history(&LayoutHistoryInfo { min_ack: 4, ..info() });
        assert!(unknown.contains("skip-dead-nodes --version 5\n") && !unknown.contains("--allow-missing-data"));
    }

    #[test]
    fn layouts_in_conflict_are_shown_with_what_to_type() {
        let layout = Layout {
            version: 4,
            roles: vec![],
            parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
            partition_size: 1,
            staged_role_changes: vec![],
            staged_parameters: None,
            conflicts: vec![],
        };
        let candidate = |digit: &str| ConflictingLayout { digest: digit.repeat(64), layout: layout.clone() };
        let conflict = LayoutConflict { version: 4, layouts: vec![candidate("a"), candidate("b")] };
        let text = conflicts(std::slice::from_ref(&conflict));
        assert!(
            text.contains("garage layout resolve aaaaaaaaaaaaaaaa\n") && text.contains("resolve bbbbbbbbbbbbbbbb\n"),
            "{text}"
        );
        let rival = |digit: &str| VersionInfo {
            version: 4,
            digest: Some(digit.repeat(64)),
            status: VersionStatus::Current,
            storage_nodes: 3,
            gateway_nodes: 0,
        };
        let versions = vec![rival("a"), rival("b")];
        let shown = history(&LayoutHistoryInfo { conflicts: vec![conflict], versions, ..info() });
        let expected = "==== LAYOUT HISTORY ====\n\
                        Version  Status       Storage nodes  Gateway nodes  Digest\n\
                        #4       In conflict  3              0              aaaaaaaaaaaaaaaa\n\
                        #4       In conflict  3              0              bbbbbbbbbbbbbbbb\n\
                        \n";
        assert!(shown.starts_with(expected), "{shown}");
        assert!(shown.contains("resolve aaaa") && !shown.contains("skip-dead-nodes"), "a skip would be refused");
        assert!(conflicts(&[]).contains("nothing has to be chosen"));
    }

    #[test]
    fn a_skip_names_the_nodes() {
        let nodes =
            SkippedNodes { ack_updated: vec![NodeId::from_bytes([1; 32])], sync_updated: vec![], sync_ack_updated: vec![] };
        let text = skipped(&nodes);
        assert!(text.contains("(ACK):\n  0101010101010101\n") && !text.contains("SYNC"), "{text}");
    }
}
