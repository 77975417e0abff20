//! `garage convert-db`: without a daemon, and with its progress where someone looks.

use std::time::Duration;

use garage_node::convert::{Conversion, Phase, Progress, TreeSummary, convert};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::ConvertDbArgs;
use crate::error::CliError;
use crate::output::Output;
use crate::show::{row, table};

/// What was converted, as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Converted {
    trees: Vec<ConvertedTree>,
}

#[derive(Serialize)]
struct ConvertedTree {
    name: String,
    rows: u64,
}

/// Converts on this thread, which has nothing else to do.
pub(super) fn run(args: &ConvertDbArgs, output: Output) -> Result<(), CliError> {
    let conversion = Conversion {
        from: (&args.input_engine, &args.input),
        to: (&args.output_engine, &args.output),
        lmdb_map_size: args.lmdb_map_size,
    };
    let bar = bar();
    let trees = convert(&conversion, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let trees = trees?.into_iter().map(|TreeSummary { name, rows, .. }| ConvertedTree { name, rows }).collect();
    output.reply(&Converted { trees }, |converted| text(converted, args))
}

fn text(converted: &Converted, args: &ConvertDbArgs) -> String {
    let mut rows = vec![row(["Tree", "Rows"])];
    rows.extend(converted.trees.iter().map(|tree| vec![tree.name.clone(), tree.rows.to_string()]));
    format!(
        "{}\nCopied and compared. Next: set db_engine = \"{}\", start the daemon, and remove {} once you are content.\n",
        table(&rows),
        args.output_engine,
        args.input.display()
    )
}

/// On standard error, when that is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} rows, {eta} left");
    bar.set_style(style.expect("the template is a constant"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_message(match progress.phase {
        Phase::Copying => "Copying",
        Phase::Comparing => "Comparing",
    });
    bar.set_length(progress.rows_total);
    bar.set_position(progress.rows);
}

#[cfg(test)]
mod tests {
    use super::{Converted, ConvertedTree, text};
    use crate::args::ConvertDbArgs;

    #[test]
    fn what_to_do_next_is_said() {
        let args = ConvertDbArgs {
            input_engine: "lmdb".to_owned(),
            input: "/m/db.lmdb".into(),
            output_engine: "redb".to_owned(),
            output: "/m/db.redb".into(),
            lmdb_map_size: None,
        };
        let text = text(&Converted { trees: vec![ConvertedTree { name: "key".to_owned(), rows: 12 }] }, &args);
        assert!(text.starts_with("Tree  Rows\nkey   12\n"), "{text}");
        assert!(text.contains("set db_engine = \"redb\"") && text.contains("remove /m/db.lmdb"), "{text}");
    }
}
