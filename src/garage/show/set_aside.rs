//! `garage repair set-aside`

use garage_admin::nodes::Multi;
use garage_admin::set_aside::{SetAsideContent, SetAsideList, SetAsideReason, SetAsideRow, SetAsideSettled};
use jiff::tz::TimeZone;

use super::{heading, moment, row, table};

pub fn list(nodes: &Multi<SetAsideList>) -> String {
    let mut text = String::new();
    for (node, list) in &nodes.success {
        text += &heading(&format!("NODE [{}]", node.short()));
        text += &of_node(list);
    }
    text + &errors(nodes)
}

fn of_node(list: &SetAsideList) -> String {
    if list.rows.is_empty() {
        return "No row is set aside.\n".to_owned();
    }
    let mut rows = vec![row(["ID", "Table", "Why", "When", "What"])];
    rows.extend(
        list.rows
            .iter()
            .map(|aside| vec![aside.id.clone(), aside.table.clone(), why(aside).to_owned(), when(aside), aside.subject.clone()]),
    );
    let mut text = table(&rows);
    if list.total > list.rows.len() as u64 {
        text += &format!("... and {} more\n", list.total - list.rows.len() as u64);
    }
    text + "To see one: garage repair set-aside show ID. To bring them back or let them go: merge, discard.\n"
}

fn why(aside: &SetAsideRow) -> &'static str {
    match aside.reason {
        SetAsideReason::Left => "left",
        SetAsideReason::Returned => "returned",
        SetAsideReason::Restored => "restored",
        SetAsideReason::Damaged => "damaged",
        SetAsideReason::Unknown => "unknown",
    }
}

fn when(aside: &SetAsideRow) -> String {
    aside.set_aside_at.map_or_else(|| "unknown".to_owned(), |at| moment(at, &TimeZone::system()))
}

pub fn content(nodes: &Multi<SetAsideContent>) -> String {
    let mut text = String::new();
    for found in nodes.success.values() {
        let SetAsideContent { row: aside, content } = found;
        text += &heading("ROW SET ASIDE");
        text += &table(&[
            row(["ID:", &aside.id]),
            row(["Table:", &aside.table]),
            row(["What:", &aside.subject]),
            row(["Why:", why(aside)]),
            row(["When:", &when(aside)]),
        ]);
        text += &format!("\n{content}\n");
    }
    text + &errors(nodes)
}

pub fn settled(nodes: &Multi<SetAsideSettled>) -> String {
    let mut text = String::new();
    for (node, settled) in &nodes.success {
        let SetAsideSettled { merged, superseded, unused, damaged, discarded, left } = settled;
        text += &format!(
            "{}: {merged} brought back, {superseded} superseded and gone, {unused} of no use now, {discarded} discarded; \
             {left} are still set aside\n",
            node.short()
        );
        text += &why_unused(*unused, *damaged);
    }
    text + &errors(nodes)
}

/// Why rows were not brought back, and what can be done; empty when all were.
fn why_unused(unused: u64, damaged: u64) -> String {
    let mut text = String::new();
    let other = unused.saturating_sub(damaged);
    if other > 0 {
        text += &format!(
            "  {other} need content, or something that uses them, that is not there. Bring back the rows that they belong to, then try again.\n"
        );
    }
    if damaged > 0 {
        text += &format!(
            "  {damaged} are damaged: they do not match their checksums, so their bytes cannot be trusted, and they are never brought back.\n  \
             To see which objects they were: garage repair set-aside show ID. Put back a snapshot of the metadata from before the damage, \
             or upload the objects again; then discard the rows, and free what the objects had with garage repair --yes versions.\n"
        );
    }
    text
}

fn errors<T>(nodes: &Multi<T>) -> String {
    nodes.error.iter().map(|(node, error)| format!("{}: Error: {error}\n", node.short())).collect()
}

#[cfg(test)]
mod tests {
    use garage_admin::nodes::Multi;
    use garage_admin::set_aside::{SetAsideList, SetAsideReason, SetAsideRow, SetAsideSettled};
    use garage_types::NodeId;

    use super::{list, settled};

    #[test]
    fn rows_set_aside_are_listed_with_their_reason_and_what_can_be_done() {
        let aside = SetAsideRow {
            id: "0123456789abcdef".into(),
            table: "object".into(),
            subject: "object a.jpg in bucket 9f".into(),
            reason: SetAsideReason::Left,
            set_aside_at: None,
        };
        let node = NodeId::from_bytes([1; 32]);
        let of = |rows, total| Multi { success: [(node, SetAsideList { rows, total })].into(), error: [].into() };
        let text = list(&of(vec![aside], 3));
        assert!(text.contains("0123456789abcdef  object  left  unknown  object a.jpg in bucket 9f\n"), "{text}");
        assert!(text.contains("... and 2 more\n") && text.contains("set-aside show ID"), "{text}");
        assert!(list(&of(vec![], 0)).contains("No row is set aside."));
        let done = SetAsideSettled { merged: 2, superseded: 1, unused: 1, damaged: 0, discarded: 0, left: 1 };
        let text = settled(&Multi { success: [(node, done)].into(), error: [(node, "no".to_owned())].into() });
        assert!(text.contains("2 brought back, 1 superseded and gone, 1 of no use") && text.contains("Error: no"), "{text}");
        assert!(text.contains("1 need content") && !text.contains("damaged"), "{text}");
    }

    #[test]
    fn damaged_rows_are_not_brought_back_and_the_reply_says_why_and_what_to_do() {
        let done = SetAsideSettled { unused: 2, damaged: 2, left: 2, ..SetAsideSettled::default() };
        let text = settled(&Multi { success: [(NodeId::from_bytes([1; 32]), done)].into(), error: [].into() });
        assert!(text.contains("2 are damaged: they do not match their checksums") && text.contains("discard the rows"), "{text}");
        assert!(!text.contains("need content"), "{text}");
    }
}
