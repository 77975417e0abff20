//! `garage layout …`

use std::cmp::Reverse;
use std::collections::BTreeMap;

use garage_admin::cluster::StatusConflict;
use garage_admin::layout::{Layout, LayoutParameters, LayoutPreview, RoleChange, RoleInfo, ZoneRedundancy};
use garage_admin::layout_plan::{LayoutPlan, NodePlan};
use garage_types::size::format_decimal;

use super::{MANY_NODES, duration, heading, layout_history, named, row, share, table, tags};

/// The layout now; when something is staged, also that, and what would come of it.
pub fn show(layout: &Layout, preview: Option<&LayoutPreview>) -> String {
    if !layout.conflicts.is_empty() {
        return in_conflict(layout);
    }
    let mut text = heading("CURRENT CLUSTER LAYOUT");
    if layout.roles.is_empty() {
        text += "No node has a role yet: see garage status for the nodes, then garage layout assign.\n";
    } else if preview.is_some() && layout.roles.len() > MANY_NODES {
        // What changes is to be seen, not what there is.
        text += &zones(layout);
    } else {
        text += &roles(layout);
    }
    text += &format!("\nCurrent cluster layout version: {}\n", layout.version);
    if let Some(preview) = preview {
        text += "\n";
        text += &staged(layout);
        text += "\n";
        text += &next(layout, preview);
    }
    text
}

/// None of the layouts is the current one, and nothing can be applied.
fn in_conflict(layout: &Layout) -> String {
    let mut text = conflicts(&layout.conflicts).trim_start().to_owned();
    if layout.has_staged() {
        text += "\n";
        text += &staged(layout);
        text += "\nThis can be applied once one of the layouts is chosen.\n";
    }
    text
}

/// Which layouts contradict each other; a line for each number.
pub(super) fn conflicts(conflicts: &[StatusConflict]) -> String {
    let line = |conflict: &StatusConflict| {
        let digests: Vec<&str> = conflict.digests.iter().map(|digest| layout_history::short(digest)).collect();
        format!(
            "\nDifferent layouts are in force as version {}: {}. Choose one: see garage layout resolve.\n",
            conflict.version,
            digests.join(" and ")
        )
    };
    conflicts.iter().map(line).collect()
}

fn redundancy(parameters: &LayoutParameters) -> String {
    match parameters.zone_redundancy {
        ZoneRedundancy::Maximum => "maximum".to_owned(),
        ZoneRedundancy::AtLeast(zones) => zones.to_string(),
    }
}

/// The nodes and their roles.
pub(super) fn roles(layout: &Layout) -> String {
    let mut rows = vec![row(["ID", "Tags", "Zone", "Capacity", "Usable capacity"])];
    let role = |role: &RoleInfo| {
        let capacity = role.capacity.map_or_else(|| "gateway".to_owned(), format_decimal);
        let usable =
            role.usable_capacity.zip(role.capacity).map_or_else(String::new, |(usable, capacity)| share(usable, capacity));
        vec![role.id.short(), tags(&role.tags), role.zone.clone(), capacity, usable]
    };
    let mut roles: Vec<&RoleInfo> = layout.roles.iter().collect();
    roles.sort_by_key(|role| (&role.zone, role.id));
    rows.extend(roles.into_iter().map(role));
    format!("{}\nZone redundancy: {}\n", table(&rows), redundancy(&layout.parameters))
}

/// The zones, where the nodes are too many.
fn zones(layout: &Layout) -> String {
    let mut zones: BTreeMap<&str, Vec<&RoleInfo>> = BTreeMap::new();
    for role in &layout.roles {
        zones.entry(&role.zone).or_default().push(role);
    }
    let mut rows = vec![row(["Zone", "Storage nodes", "Gateways", "Capacity", "Usable capacity"])];
    rows.extend(zones.into_iter().map(|(zone, roles)| {
        let capacity = roles.iter().filter_map(|role| role.capacity).fold(0, u64::saturating_add);
        let usable = roles.iter().filter_map(|role| role.usable_capacity).fold(0, u64::saturating_add);
        let storing = roles.iter().filter(|role| role.capacity.is_some()).count();
        let gateways = roles.len() - storing;
        vec![zone.to_owned(), storing.to_string(), gateways.to_string(), format_decimal(capacity), share(usable, capacity)]
    }));
    format!("{}\nZone redundancy: {}\n", table(&rows), redundancy(&layout.parameters))
}

/// What is staged.
pub fn staged(layout: &Layout) -> String {
    let mut text = heading("STAGED ROLE CHANGES");
    let change = |change: &RoleChange| match &change.zone {
        Some(zone) if !change.remove => {
            let capacity = change.capacity.map_or_else(|| "gateway".to_owned(), format_decimal);
            vec![change.id.short(), tags(change.tags.as_deref().unwrap_or_default()), zone.clone(), capacity]
        }
        _ => vec![change.id.short(), "REMOVED".to_owned()],
    };
    if !layout.staged_role_changes.is_empty() {
        let mut rows = vec![row(["ID", "Tags", "Zone", "Capacity"])];
        rows.extend(layout.staged_role_changes.iter().map(change));
        text += &table(&rows);
    }
    if let Some(parameters) = &layout.staged_parameters {
        text += &format!("\nZone redundancy: {}\n", redundancy(parameters));
    }
    text
}

fn next(layout: &Layout, preview: &LayoutPreview) -> String {
    let mut text = heading("NEW CLUSTER LAYOUT AFTER APPLYING CHANGES");
    if let Some(error) = &preview.error {
        return format!(
            "{text}{error}\n\nThe layout cannot be applied yet: change the roles, or drop them with garage layout revert --yes\n"
        );
    }
    if let Some(new) = &preview.new_layout {
        text += &if new.roles.len() > MANY_NODES { zones(new) } else { roles(new) };
    }
    text += &format!("\n{}\n", preview.message.join("\n"));
    if let Some(plan) = &preview.plan {
        text += &moves(plan);
    }
    text + &format!(
        "\nTo make these changes:  garage layout apply --version {}\nTo drop them:           garage layout revert --yes\n",
        layout.version + 1
    )
}

/// What goes where, and how long that may take. Nothing when nothing moves.
fn moves(plan: &LayoutPlan) -> String {
    if plan.nodes.is_empty() {
        return String::new();
    }
    let cell = |partitions: usize, bytes: Option<u64>| match (partitions, bytes) {
        (0, _) => "-".to_owned(),
        (_, Some(bytes)) => format!("{partitions} (~{})", format_decimal(bytes)),
        (_, None) => partitions.to_string(),
    };
    let mut nodes: Vec<&NodePlan> = plan.nodes.iter().collect();
    let partitions = |node: &NodePlan| node.receives_partitions + node.sends_partitions + node.gives_up_partitions;
    if nodes.len() > MANY_NODES {
        nodes.sort_by_key(|node| (Reverse(partitions(node)), node.id));
    }
    let (listed, rest) = nodes.split_at(nodes.len().min(MANY_NODES));
    let mut rows = vec![row(["ID", "Receives", "Sends", "Gives up"])];
    rows.extend(listed.iter().map(|node| {
        vec![
            node.id.short(),
            cell(node.receives_partitions, node.receives_bytes),
            cell(node.sends_partitions, node.sends_bytes),
            cell(node.gives_up_partitions, node.gives_up_bytes),
        ]
    }));
    let mut text = format!("\n{}{}", heading("PARTITIONS TO MOVE"), table(&rows));
    if let Some(most) = rest.iter().map(|node| partitions(node)).max() {
        text += &format!("and {} more nodes with at most {most} each\n", rest.len());
    }
    if plan.partitions_without_source > 0 {
        text += &format!(
            "\nWarning: {} copies cannot be fetched now, because no node that has them is connected.\n",
            plan.partitions_without_source
        );
    }
    if !plan.disconnected_receivers.is_empty() {
        text += &format!(
            "\nWarning: not connected, and to receive partitions: {}. The change does not end without them.\n",
            named(&plan.disconnected_receivers)
        );
    }
    text + "\n" + &time(plan) + "\n"
}

/// How long the moves take, or why that is not known.
fn time(plan: &LayoutPlan) -> String {
    let without = match plan.unknown_speeds.len() {
        0 => String::new(),
        1 => ", without 1 node whose speed is unknown".to_owned(),
        nodes => format!(", without {nodes} nodes whose speed is unknown"),
    };
    match (plan.seconds, plan.partition_bytes) {
        (_, None) => "How long that takes is unknown: the buckets could not be counted.".to_owned(),
        (_, Some(0)) => "Next to nothing is stored: that takes no time.".to_owned(),
        (Some(seconds), _) => {
            format!("At the speeds seen from this node, that takes at least {}{without}.", duration(seconds))
        }
        (None, _) => {
            "How long that takes is unknown: no large transfer has shown this node yet how fast those nodes are.".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_admin::cluster::StatusConflict;
    use garage_admin::layout::{Layout, LayoutParameters, LayoutPreview, RoleChange, RoleInfo, ZoneRedundancy};
    use garage_admin::layout_plan::{LayoutPlan, NodePlan};
    use garage_types::NodeId;

    use super::{moves, show};

    fn layout() -> Layout {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let capacity = Some(2_000_000_000_000);
        let role = |byte, capacity: Option<u64>| RoleInfo {
            id: id(byte),
            zone: "paris".into(),
            tags: vec!["a".into()],
            capacity,
            stored_partitions: capacity.map(|_| 256),
            usable_capacity: capacity,
        };
        let staged = RoleChange { id: id(3), remove: false, zone: Some("lyon".into()), tags: Some(vec!["c".into()]), capacity };
        Layout {
            version: 3,
            roles: vec![role(1, capacity), role(2, None)],
            parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
            partition_size: 1,
            staged_role_changes: vec![staged, RoleChange::removal(id(2))],
            staged_parameters: Some(LayoutParameters { zone_redundancy: ZoneRedundancy::AtLeast(2) }),
            conflicts: vec![],
        }
    }

    fn plan() -> LayoutPlan {
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let node = |byte, receives, sends, gives_up| NodePlan {
            id: id(byte),
            receives_partitions: receives,
            sends_partitions: sends,
            gives_up_partitions: gives_up,
            receives_bytes: Some(receives as u64 * 1_000_000),
            sends_bytes: Some(sends as u64 * 1_000_000),
            gives_up_bytes: Some(gives_up as u64 * 1_000_000),
        };
        LayoutPlan {
            zone_redundancy: 2,
            usable_capacity: 1,
            effective_capacity: 1,
            partition_bytes: Some(1_000_000),
            nodes: vec![node(1, 0, 100, 0), node(2, 0, 156, 256), node(3, 256, 0, 0)],
            partitions_without_source: 0,
            seconds: Some(7300),
            unknown_speeds: vec![],
            disconnected_receivers: vec![],
        }
    }

    #[test]
    fn what_moves_is_a_table_in_partitions_and_bytes() {
        let expected = "\n==== PARTITIONS TO MOVE ====\n\
                        ID                Receives         Sends            Gives up\n\
                        0101010101010101  -                100 (~100.0 MB)  -\n\
                        0202020202020202  -                156 (~156.0 MB)  256 (~256.0 MB)\n\
                        0303030303030303  256 (~256.0 MB)  -                -\n\
                        \n\
                        At the speeds seen from this node, that takes at least 2 hours.\n";
        assert_eq!(moves(&plan()), expected);
        assert_eq!(moves(&LayoutPlan { nodes: vec![], ..plan() }), "", "nothing moves");
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let partly = moves(&LayoutPlan { unknown_speeds: vec![id(2)], ..plan() });
        assert!(partly.ends_with("at least 2 hours, without 1 node whose speed is unknown.\n"), "{partly}");
        let unknown = LayoutPlan { seconds: None, unknown_speeds: vec![id(2), id(3)], ..plan() };
        assert!(moves(&unknown).contains("How long that takes is unknown: no large transfer"), "{}", moves(&unknown));
        let cut_off = moves(&LayoutPlan { disconnected_receivers: vec![id(3)], ..plan() });
        assert!(cut_off.contains("Warning: not connected, and to receive partitions: 0303030303030303."), "{cut_off}");
        let lost = moves(&LayoutPlan { partitions_without_source: 7, seconds: None, partition_bytes: None, ..plan() });
        assert!(lost.contains("Warning: 7 copies cannot be fetched") && lost.contains("could not be counted"));
    }

    #[test]
    fn a_layout_is_shown_with_what_is_staged_and_what_to_type() {
        let layout = layout();
        let preview =
            LayoutPreview { error: None, message: vec!["report".into()], new_layout: Some(layout.clone()), plan: Some(plan()) };
        let text = show(&layout, Some(&preview));
        for part in [
            "==== CURRENT CLUSTER LAYOUT ====\n\
             ID                Tags  Zone   Capacity  Usable capacity\n\
             0101010101010101  [a]   paris  2.0 TB    2.0 TB (100.0%)\n\
             0202020202020202  [a]   paris  gateway\n\
             \n\
             Zone redundancy: maximum\n\
             \n\
             Current cluster layout version: 3\n",
            "==== STAGED ROLE CHANGES ====\n\
             ID                Tags     Zone  Capacity\n\
             0303030303030303  [c]      lyon  2.0 TB\n\
             0202020202020202  REMOVED\n\
             \n\
             Zone redundancy: 2\n",
            "\nreport\n",
            "garage layout apply --version 4\n",
        ] {
            assert!(text.contains(part), "{text}\nshould have\n{part}");
        }
        assert!(!show(&layout, None).contains("STAGED"));
    }

    #[test]
    fn no_layout_in_conflict_is_shown_as_the_current_one() {
        let conflicts = vec![StatusConflict { version: 3, digests: vec!["a".repeat(64), "b".repeat(64)] }];
        let layout = Layout { conflicts, ..layout() };
        let preview = LayoutPreview { error: Some("conflict".into()), message: vec![], new_layout: None, plan: None };
        let text = show(&layout, Some(&preview));
        assert!(
            text.starts_with("Different layouts are in force as version 3: aaaaaaaaaaaaaaaa and bbbbbbbbbbbbbbbb. Choose one"),
            "{text}"
        );
        assert!(text.contains("STAGED") && !text.contains("CURRENT") && !text.contains("layout apply"), "{text}");
        let nothing_staged = Layout { staged_role_changes: vec![], staged_parameters: None, ..layout };
        assert!(!show(&nothing_staged, None).contains("STAGED"));
    }

    #[test]
    fn a_layout_that_cannot_be_computed_says_so() {
        let preview = LayoutPreview { error: Some("too few nodes".into()), message: vec![], new_layout: None, plan: None };
        let text = show(&layout(), Some(&preview));
        assert!(text.contains("too few nodes\n\nThe layout cannot be applied yet") && !text.contains("--version 4"));
    }
}
