//! What moves between nodes, in `garage status`, `garage layout history` and `garage stats`

use garage_admin::moves::{DepartedNode, NodeMoves, Removal};
use garage_types::NodeId;
use garage_types::size::format_decimal;

use super::{duration, heading, row, table};

/// What nodes with a role have still to receive or to hand over; empty when nobody has anything. Those with the most come first, and
/// only `lines_max` of them are listed.
pub fn moving<'a>(nodes: impl Iterator<Item = (NodeId, &'a NodeMoves)>, lines_max: usize) -> String {
    let mut nodes: Vec<_> = nodes.filter(|(_id, moves)| moves.is_moving()).collect();
    nodes.sort_by_key(|(id, moves)| (std::cmp::Reverse(moves.bytes_left_estimated), *id));
    let (listed, rest) = nodes.split_at(nodes.len().min(lines_max));
    let mut rows = vec![row(["ID", "To fetch", "To hand over", "Failed", "Size", "Rate", "Time left"])];
    rows.extend(listed.iter().map(|(id, moves)| {
        let to_hand_over = match (moves.blocks_to_hand_over, moves.partitions_to_hand_over) {
            (blocks, 0) => format!("{blocks} blocks"),
            (blocks, partitions) => format!("{blocks} blocks, rows of {partitions} partitions"),
        };
        vec![
            id.short(),
            format!("{} blocks", moves.blocks_to_fetch),
            to_hand_over,
            moves.blocks_failed.to_string(),
            size(moves),
            moves.bytes_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", format_decimal(rate))),
            time_left(moves),
        ]
    }));
    if nodes.is_empty() {
        return String::new();
    }
    let mut text = heading("DATA STILL TO BE MOVED") + &table(&rows);
    if !rest.is_empty() {
        let bytes = rest.iter().map(|(_id, moves)| moves.bytes_left_estimated).fold(0, u64::saturating_add);
        text += &format!("and {} more nodes, about {}: see garage layout history\n", rest.len(), format_decimal(bytes));
    }
    text
}

/// The nodes without a role that stored data, and whether they may be switched off; empty when there are none.
pub fn departed<'a>(nodes: impl Iterator<Item = &'a DepartedNode>) -> String {
    let mut rows = vec![row(["ID", "Left with", "State"])];
    rows.extend(nodes.map(|node| {
        let version = node.left_with_version.map_or_else(|| "?".to_owned(), |version| format!("#{version}"));
        vec![node.id.short(), version, state(node)]
    }));
    if rows.len() == 1 { String::new() } else { heading("NODES THAT LEFT") + &table(&rows) }
}

/// Lines of `garage stats` about one node.
pub fn of_node(moves: &NodeMoves) -> String {
    let mut text = String::new();
    if moves.is_moving() {
        text += &format!(
            "  blocks to move:  {} to this node, {} to others ({}, {})\n",
            moves.blocks_to_fetch,
            moves.blocks_to_hand_over,
            size(moves),
            time_left(moves)
        );
    }
    if moves.blocks_moved > 0 {
        let size = format_decimal(moves.bytes_moved);
        text += &format!("  blocks moved since it started:  {} ({size})\n", moves.blocks_moved);
    }
    if moves.partitions_to_hand_over > 0 {
        text += &format!("  partitions with rows that belong to other nodes:  {}\n", moves.partitions_to_hand_over);
    }
    if moves.rows_set_aside > 0 {
        text += &format!("  rows set aside:  {}\n", moves.rows_set_aside);
    }
    text
}

fn size(moves: &NodeMoves) -> String {
    if moves.blocks() == 0 { "-".to_owned() } else { format!("about {}", format_decimal(moves.bytes_left_estimated)) }
}

fn time_left(moves: &NodeMoves) -> String {
    match moves.seconds_left_estimated {
        _ if moves.still_counting => "still counting".to_owned(),
        _ if moves.blocks() == 0 => "-".to_owned(),
        None => "nothing moved yet".to_owned(),
        Some(seconds) => format!("about {}", duration(seconds)),
    }
}

/// `safe to remove`, or why not.
fn state(node: &DepartedNode) -> String {
    match (node.removal, &node.moves) {
        (Removal::SafeToRemove, _) => "safe to remove".to_owned(),
        (Removal::Unknown, None) => "unknown: it cannot be asked".to_owned(),
        (Removal::Unknown, Some(_)) => "unknown: it goes by another layout for now".to_owned(),
        (Removal::StillNeeded, moves) => format!("still needed: {}", reasons(node.partitions_live, moves.as_ref()).join(", ")),
    }
}

fn reasons(partitions_live: u64, moves: Option<&NodeMoves>) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut add = |count: u64, text: &str| {
        if count > 0 {
            reasons.push(format!("{count} {text}"));
        }
    };
    add(partitions_live, "partitions of a layout that is still in use");
    let Some(moves) = moves else { return reasons };
    add(moves.blocks(), &format!("blocks, {}", size(moves)));
    if partitions_live == 0 {
        add(moves.partitions_to_hand_over, "partitions with rows to hand over");
    }
    add(moves.deletions_to_send, "deletions to be told to their owners");
    add(moves.rows_set_aside, "rows set aside");
    if moves.has_other_blocks == Some(true) {
        reasons.push("blocks that were overlooked, looked at now".to_owned());
    }
    if moves.rebuilding {
        reasons.push("its database is being rebuilt".to_owned());
    }
    if moves.still_counting {
        reasons.push("still counting its blocks".to_owned());
    }
    if reasons.is_empty() {
        reasons.push("about to be looked at".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests {
    use garage_admin::moves::{DepartedNode, NodeMoves, Removal};
    use garage_types::NodeId;

    use super::{departed, moving, of_node};

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn busy() -> NodeMoves {
        NodeMoves {
            blocks_to_fetch: 12,
            blocks_to_hand_over: 3,
            bytes_left_estimated: 15_000_000,
            bytes_per_second: Some(50_000),
            seconds_left_estimated: Some(300),
            ..NodeMoves::default()
        }
    }

    #[test]
    fn what_is_to_be_moved_has_a_rate_and_an_end() {
        let (idle, busy) = (NodeMoves::default(), busy());
        let text = moving([(id(1), &idle), (id(2), &busy)].into_iter(), usize::MAX);
        let expected = "==== DATA STILL TO BE MOVED ====\n\
            ID                To fetch   To hand over  Failed  Size           Rate       Time left\n\
            0202020202020202  12 blocks  3 blocks      0       about 15.0 MB  50.0 KB/s  about 5 minutes\n";
        assert_eq!(text, expected);
        assert_eq!(moving([(id(1), &idle)].into_iter(), usize::MAX), "", "nothing to tell");
        let counting = NodeMoves { still_counting: true, ..NodeMoves::default() };
        assert!(moving([(id(1), &counting)].into_iter(), usize::MAX).contains("still counting"));
        let more = NodeMoves { bytes_left_estimated: 20_000_000, ..busy.clone() };
        let text = moving([(id(1), &busy), (id(2), &more), (id(3), &busy)].into_iter(), 1);
        assert!(
            text.ends_with("\nand 2 more nodes, about 30.0 MB: see garage layout history\n") && text.contains("0202020202020202")
        );
        assert!(!text.contains("0101010101010101"), "{text}");
        assert_eq!(of_node(&idle), "");
        let moved = NodeMoves { blocks_moved: 7, bytes_moved: 7_000_000, ..NodeMoves::default() };
        assert_eq!(of_node(&moved), "  blocks moved since it started:  7 (7.0 MB)\n");
        assert!(of_node(&busy).contains("12 to this node, 3 to others (about 15.0 MB, about 5 minutes)"));
        let waiting = NodeMoves { bytes_per_second: None, seconds_left_estimated: None, ..busy };
        assert!(of_node(&waiting).contains("nothing moved yet"));
    }

    #[test]
    fn a_node_that_left_says_whether_it_may_be_switched_off() {
        let node = |byte, removal, moves| DepartedNode {
            id: id(byte),
            left_with_version: (byte < 4).then_some(2),
            removal,
            partitions_live: 0,
            moves,
        };
        let left = [
            node(1, Removal::SafeToRemove, Some(NodeMoves::default())),
            node(2, Removal::StillNeeded, Some(NodeMoves { partitions_to_hand_over: 9, rows_set_aside: 4, ..busy() })),
            node(3, Removal::Unknown, None),
            DepartedNode { partitions_live: 256, ..node(4, Removal::StillNeeded, Some(NodeMoves::default())) },
        ];
        let expected = "==== NODES THAT LEFT ====\n\
            ID                Left with  State\n\
            0101010101010101  #2         safe to remove\n\
            0202020202020202  #2         still needed: 15 blocks, about 15.0 MB, 9 partitions with rows to hand over, 4 rows set aside\n\
            0303030303030303  #2         unknown: it cannot be asked\n\
            0404040404040404  ?          still needed: 256 partitions of a layout that is still in use\n";
        assert_eq!(departed(left.iter()), expected);
        assert_eq!(departed([].into_iter()), "");
    }
}
