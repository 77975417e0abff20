//! Replies in words and tables. Pure: text out of data, nothing printed here.

pub mod bucket;
pub mod cluster;
pub mod key;
pub mod layout;
pub mod layout_history;
#[cfg(test)]
mod many_tests;
pub mod moves;
pub mod object;
pub mod set_aside;
pub mod stats;
pub mod worker;

use garage_admin::Date;
use garage_admin::nodes::Multi;
use garage_types::NodeId;
use garage_types::size::{format_binary, format_decimal};
use jiff::tz::TimeZone;

use crate::escape::{Colours, escaped_line};

/// With more nodes than this, output is by zone, or of those that matter most, where a line for each would be too much.
pub const MANY_NODES: usize = 20;
const TAGS_CHARS_MAX: usize = 32;
/// Of a list of nodes within a sentence.
const NAMED_MAX: usize = 4;

/// Rows of cells as columns, two spaces apart. Every line ends in a line break, and no cell has one.
pub fn table(rows: &[Vec<String>]) -> String {
    let one_line = |row: &Vec<String>| row.iter().map(|cell| escaped_line(cell, Colours::None)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(one_line).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A row from texts.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A line that begins a part of the output.
/// What several nodes said, each under its own heading; then the errors of those that said nothing.
pub fn of_nodes<T>(multi: &Multi<T>, text: impl Fn(&T) -> String) -> String {
    let said = multi.success.iter().map(|(node, reply)| (node, text(reply)));
    let failed = multi.error.iter().map(|(node, error)| (node, format!("Error: {error}\n")));
    let sections: Vec<String> =
        said.chain(failed).map(|(node, text)| format!("{}{text}", heading(&format!("NODE [{}]", node.short())))).collect();
    sections.join("\n")
}

pub fn heading(title: &str) -> String {
    format!("==== {title} ====\n")
}

/// `[a,b]`, cut when there are many.
pub fn tags(tags: &[String]) -> String {
    format!("[{}]", cut(&tags.join(","), TAGS_CHARS_MAX))
}

/// A cell that must not push the others out of sight: cut, with an ellipsis, to so many characters.
pub fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// `0101010101010101, 0202020202020202 and 7 more`
pub fn named(nodes: &[NodeId]) -> String {
    let (shown, rest) = nodes.split_at(nodes.len().min(NAMED_MAX));
    let shown = shown.iter().map(NodeId::short).collect::<Vec<_>>().join(", ");
    if rest.is_empty() { shown } else { format!("{shown} and {} more", rest.len()) }
}

/// `photos, ... (2)`: the first of several, and how many there are.
pub fn first_of(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [first, ..] => format!("{first}, ... ({})", names.len()),
    }
}

/// `12.0 MiB (12.6 MB)`
pub fn both_sizes(bytes: u64) -> String {
    format!("{} ({})", format_binary(bytes), format_decimal(bytes))
}

/// `1.4 TB (70.0%)`
pub fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    format!("{} ({percent:.1}%)", format_decimal(part))
}

/// `2025-05-01`
pub fn day(date: Date, zone: &TimeZone) -> String {
    local(date, zone).map_or_else(|| date.to_string(), |local| local.strftime("%Y-%m-%d").to_string())
}

/// `2025-05-01 10:20:30.000 +02:00`
pub fn moment(date: Date, zone: &TimeZone) -> String {
    local(date, zone).map_or_else(|| date.to_string(), |local| local.strftime("%Y-%m-%d %H:%M:%S%.3f %:z").to_string())
}

/// `None` for dates beyond the calendar.
fn local(date: Date, zone: &TimeZone) -> Option<jiff::Zoned> {
    let millis = i64::try_from(date.0.as_millis()).ok()?;
    jiff::Timestamp::from_millisecond(millis).ok().map(|instant| instant.to_zoned(zone.clone()))
}

/// `4 hours ago`
pub fn ago(seconds: u64) -> String {
    format!("{} ago", duration(seconds))
}

/// `4 hours`: one unit is enough to see what is going on.
pub fn duration(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use garage_admin::Date;
    use garage_admin::nodes::Multi;
    use garage_types::{NodeId, Timestamp};
    use jiff::tz::TimeZone;

    use super::{ago, both_sizes, cut, day, first_of, moment, named, of_nodes, row, share, table};

    #[test]
    fn what_nodes_said_stands_under_their_names_and_so_do_errors() {
        let (one, two) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let multi = Multi { success: [(two, 7)].into(), error: [(one, "gone".to_owned())].into() };
        let text = of_nodes(&multi, |number| format!("{number} jobs\n"));
        assert_eq!(text, "==== NODE [0202020202020202] ====\n7 jobs\n\n==== NODE [0101010101010101] ====\nError: gone\n");
    }

    #[test]
    fn columns_are_two_spaces_apart() {
        let rows = [row(["ID", "Name", "X"]), row(["12345", "ü", ""]), row(["1", "longer", "y"])];
        assert_eq!(table(&rows), "ID     Name    X\n12345  ü\n1      longer  y\n");
    }

    #[test]
    fn times_are_shown_in_the_given_zone() {
        let date = Date(Timestamp::from_millis(1_746_087_630_000));
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(moment(date, &zone), "2025-05-01 10:20:30.000 +02:00");
        assert_eq!(day(date, &zone), "2025-05-01");
        assert_eq!((ago(1), ago(7200), ago(90_000)), ("1 second ago".into(), "2 hours ago".into(), "1 day ago".into()));
    }

    #[test]
    fn sizes_and_lists_are_short() {
        assert_eq!(both_sizes(12 << 20), "12.0 MiB (12.6 MB)");
        assert_eq!(share(1_400_000_000_000, 2_000_000_000_000), "1.4 TB (70.0%)");
        assert_eq!(share(0, 0), "0 B (0.0%)");
        assert_eq!(first_of(&["photos".into(), "pics".into()]), "photos, ... (2)");
        assert_eq!((cut("straße", 6), cut("straßen", 6)), ("straße".into(), "straß…".into()));
        let nodes: Vec<NodeId> = (1..=8).map(|byte| NodeId::from_bytes([byte; 32])).collect();
        assert_eq!(named(&nodes[..2]), "0101010101010101, 0202020202020202");
        assert!(named(&nodes).ends_with(", 0404040404040404 and 4 more"));
    }
}
