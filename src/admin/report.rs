//! A computed layout in words.

use std::collections::BTreeMap;

use garage_rpc::layout::report::{Report, ZoneReport};
use garage_rpc::layout::version::NodeRole;
use garage_types::NodeId;
use garage_types::size::format_decimal;

/// With more storage nodes than this, zones are listed instead.
const NODES_LISTED_MAX: usize = 20;

/// Lines for people; no program may read them.
pub fn lines(report: &Report, roles: &BTreeMap<NodeId, NodeRole>) -> Vec<String> {
    let mut lines = vec![
        format!("Replication factor: {}, copies in at least {} distinct zones", report.replication_factor, report.zones_min),
        partition_size(report),
        format!(
            "Usable capacity: {} of {} ({:.1}%)",
            format_decimal(report.usable),
            format_decimal(report.total),
            percent(report.usable, report.total)
        ),
        format!("Effective capacity (usable / replication factor): {}", format_decimal(report.effective)),
    ];
    if report.partition_size_previous.is_some() {
        lines.push(format!("Copies of partitions to transfer: {}", report.copies_to_transfer));
    }
    if report.zones.iter().map(|zone| zone.nodes.len()).sum::<usize>() > NODES_LISTED_MAX {
        lines.push(String::new());
        lines.extend(aligned(&zones(&report.zones)));
        return lines;
    }
    for zone in &report.zones {
        lines.push(String::new());
        lines.extend(aligned(&nodes(zone, roles)));
    }
    lines
}

/// A line for each zone, where the nodes are too many.
fn zones(zones: &[ZoneReport]) -> Vec<[String; 5]> {
    let mut rows = vec![["Zone", "Nodes", "Partitions", "Capacity", "Usable capacity"].map(str::to_owned)];
    rows.extend(zones.iter().map(|zone| {
        let new: usize = zone.nodes.iter().map(|node| node.partitions_new).sum();
        [
            zone.zone.clone(),
            zone.nodes.len().to_string(),
            format!("{} ({} unique, {new} new)", zone.copies, zone.partitions),
            format_decimal(zone.capacity),
            usable(zone.usable, zone.capacity),
        ]
    }));
    rows
}

fn usable(usable: u64, capacity: u64) -> String {
    format!("{} ({:.1}%)", format_decimal(usable), percent(usable, capacity))
}

fn partition_size(report: &Report) -> String {
    let size = format_decimal(report.partition_size);
    match report.partition_size_previous {
        Some(previous) => format!("Partition size: {size} (before: {})", format_decimal(previous)),
        None => format!("Partition size: {size}"),
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// The nodes of a zone.
fn nodes(zone: &ZoneReport, roles: &BTreeMap<NodeId, NodeRole>) -> Vec<[String; 5]> {
    let mut rows = vec![[&zone.zone, "Tags", "Partitions", "Capacity", "Usable capacity"].map(str::to_owned)];
    for node in &zone.nodes {
        let tags = roles.get(&node.node).map(|role| role.tags.join(",")).unwrap_or_default();
        rows.push([
            format!("  {}", node.node.short()),
            format!("[{tags}]"),
            format!("{} ({} new)", node.partitions, node.partitions_new),
            format_decimal(node.capacity),
            usable(node.usable, node.capacity),
        ]);
    }
    rows.push([
        "  TOTAL".to_owned(),
        String::new(),
        format!("{} ({} unique)", zone.copies, zone.partitions),
        format_decimal(zone.capacity),
        usable(zone.usable, zone.capacity),
    ]);
    rows
}

fn aligned(rows: &[[String; 5]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_rpc::layout::report::{NodeReport, Report, ZoneReport};
    use garage_rpc::layout::version::NodeRole;
    use garage_types::NodeId;

    use super::lines;

    #[test]
    fn a_report_says_what_is_gained_and_what_moves() {
        let node = NodeId::from_bytes([0x2c; 32]);
        let capacity = 2_000_000_000_000;
        let report = Report {
            replication_factor: 3,
            zones_min: 2,
            partition_size: 7_800_000_000,
            partition_size_previous: Some(3_900_000_000),
            usable: capacity,
            total: capacity,
            effective: capacity / 3,
            copies_to_transfer: 256,
            zones: vec![ZoneReport {
                zone: "lyon".into(),
                nodes: vec![NodeReport { node, partitions: 256, partitions_new: 256, capacity, usable: capacity }],
                copies: 256,
                partitions: 256,
                capacity,
                usable: capacity,
            }],
        };
        let roles = BTreeMap::from([(node, NodeRole { zone: "lyon".into(), capacity: Some(capacity), tags: vec!["c".into()] })]);
        let lines = lines(&report, &roles);
        let many = Report {
            zones: vec![ZoneReport { nodes: vec![report.zones[0].nodes[0].clone(); 21], ..report.zones[0].clone() }],
            ..report.clone()
        };
        let found = super::lines(&many, &roles);
        assert_eq!(
            found[found.len() - 2..],
            [
                "Zone  Nodes  Partitions                  Capacity  Usable capacity",
                "lyon  21     256 (256 unique, 5376 new)  2.0 TB    2.0 TB (100.0%)",
            ]
        );
        assert!(lines.contains(&"Partition size: 7.8 GB (before: 3.9 GB)".to_owned()));
        assert!(lines.contains(&"Copies of partitions to transfer: 256".to_owned()));
        assert_eq!(
            lines[lines.len() - 3..],
            [
                "lyon                Tags  Partitions        Capacity  Usable capacity",
                "  2c2c2c2c2c2c2c2c  [c]   256 (256 new)     2.0 TB    2.0 TB (100.0%)",
                "  TOTAL                   256 (256 unique)  2.0 TB    2.0 TB (100.0%)",
            ]
        );
    }
}
