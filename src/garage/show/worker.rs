//! `garage worker`, `garage repair` and `garage block`

use std::collections::BTreeMap;

use garage_admin::blocks::{BlockBacklink, BlockError, BlockInfo, BlocksPurged};
use garage_admin::nodes::Multi;
use garage_admin::workers::{RepairType, VariableSet, WorkerInfo, WorkerState};
use garage_block::scrub::ScrubCommand;
use garage_types::NodeId;

use super::{ago, heading, row, table};

/// In the order of [`list`]: at work, waiting, over.
fn rank(state: &WorkerState) -> u8 {
    match state {
        WorkerState::Busy | WorkerState::Throttled { .. } => 0,
        WorkerState::Paused | WorkerState::Idle => 1,
        WorkerState::Done => 2,
    }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub fn list(workers: &[WorkerInfo]) -> String {
    let mut workers: Vec<&WorkerInfo> = workers.iter().collect();
    workers.sort_by_key(|worker| (rank(&worker.state), worker.id));
    let mut rows = vec![row(["TID", "State", "Name", "Tranq", "Done", "Queue", "Errors", "Consec", "Last"])];
    rows.extend(workers.into_iter().map(|worker| {
        let state = match worker.state {
            WorkerState::Busy => "Busy",
            WorkerState::Throttled { .. } => "Busy*",
            WorkerState::Idle => "Idle",
            WorkerState::Done => "Done",
            WorkerState::Paused => "Paused",
        };
        let had_errors = worker.errors > 0;
        vec![
            worker.id.to_string(),
            state.to_owned(),
            worker.name.clone(),
            or_dash(worker.tranquility),
            or_dash(worker.progress.as_ref()),
            or_dash(worker.queue_length),
            or_dash(had_errors.then_some(worker.errors)),
            or_dash((worker.consecutive_errors > 0).then_some(worker.consecutive_errors)),
            worker.last_error.as_ref().filter(|_| had_errors).map_or_else(|| "-".to_owned(), |error| ago(error.secs_ago)),
        ]
    }));
    table(&rows)
}

pub fn info(worker: &WorkerInfo) -> String {
    let state = match worker.state {
        WorkerState::Busy => "Busy".to_owned(),
        WorkerState::Throttled { duration_secs } => format!("Busy (throttled, paused for {duration_secs:.3}s)"),
        WorkerState::Idle => "Idle".to_owned(),
        WorkerState::Done => "Done".to_owned(),
        WorkerState::Paused => "Paused".to_owned(),
    };
    let mut first =
        vec![row(["Task id:", &worker.id.to_string()]), row(["Worker name:", &worker.name]), row(["Worker state:", &state])];
    first.extend(worker.tranquility.map(|tranquility| row(["Tranquility:", &tranquility.to_string()])));
    first.push(row([""]));
    first.push(row(["Total errors:", &worker.errors.to_string()]));
    first.push(row(["Consecutive errs:", &worker.consecutive_errors.to_string()]));
    if let Some(error) = &worker.last_error {
        first.push(row(["Last error:", &error.message]));
        first.push(row(["Last error time:", &ago(error.secs_ago)]));
    }
    first.push(row([""]));
    first.extend(worker.progress.as_ref().map(|progress| row(["Progress:", progress])));
    first.extend(worker.queue_length.map(|length| row(["Queue length:", &length.to_string()])));
    first.extend(worker.persistent_errors.map(|errors| row(["Persistent errors:", &errors.to_string()])));
    first.extend(worker.freeform.iter().map(|line| row(["Message:", line])));
    table(&first)
}

fn with_errors<T>(multi: &Multi<T>, mut rows: Vec<Vec<String>>) -> String {
    rows.extend(multi.error.iter().map(|(node, error)| row([&node.short(), &format!("Error: {error}")])));
    table(&rows)
}

pub fn variables(multi: &Multi<BTreeMap<String, String>>) -> String {
    let of_node = |(node, values): (&NodeId, &BTreeMap<String, String>)| {
        let node = node.short();
        values.iter().map(|(name, value)| row([&node, name, value])).collect::<Vec<_>>()
    };
    with_errors(multi, multi.success.iter().flat_map(of_node).collect())
}

pub fn variables_set(multi: &Multi<VariableSet>) -> String {
    let of_node = |(node, set): (&NodeId, &VariableSet)| row([&node.short(), &set.variable, &set.value]);
    with_errors(multi, multi.success.iter().map(of_node).collect())
}

/// What nodes did that were told to repair something, or what to do with their scrub.
pub fn launched(multi: &Multi<()>, repair: RepairType) -> String {
    let done = match repair {
        RepairType::Scrub(ScrubCommand::Start) => "Scrub started",
        RepairType::Scrub(ScrubCommand::Pause) => "Scrub paused",
        RepairType::Scrub(ScrubCommand::Resume) => "Scrub resumed",
        RepairType::Scrub(ScrubCommand::Cancel) => "Scrub cancelled",
        RepairType::Tables
        | RepairType::Blocks
        | RepairType::Versions
        | RepairType::MultipartUploads
        | RepairType::BlockRefs
        | RepairType::BlockRc
        | RepairType::LostBlocks
        | RepairType::DamagedRows
        | RepairType::Rebalance
        | RepairType::Aliases => "Repair launched",
    };
    with_errors(multi, multi.success.keys().map(|node| row([&node.short(), done])).collect())
}

/// `in 3 minutes`
fn in_time(seconds: u64) -> String {
    if seconds == 0 { "in asap".to_owned() } else { format!("in {}", ago(seconds).trim_end_matches(" ago")) }
}

pub fn block_errors(errors: &[BlockError]) -> String {
    let mut rows = vec![row(["Hash", "RC", "Errors", "Last error", "Next try"])];
    rows.extend(errors.iter().map(|error| {
        vec![
            error.block_hash.clone(),
            error.refcount.to_string(),
            error.error_count.to_string(),
            ago(error.last_try_secs_ago),
            in_time(error.next_try_in_secs),
        ]
    }));
    table(&rows)
}

fn short(id: &str) -> &str {
    id.get(..16).unwrap_or(id)
}

pub fn block_info(block: &BlockInfo) -> String {
    let mut text = heading("BLOCK INFORMATION");
    text += &table(&[
        row(["Block hash:", &block.block_hash]),
        row(["Refcount:", &block.refcount.to_string()]),
        row(["On this node:", if block.present { "yes" } else { "no" }]),
    ]);
    text += &format!("\n{}", heading("REFERENCES TO THIS BLOCK"));
    let mut rows = vec![row(["Status", "Version", "Bucket", "Key", "MPU"])];
    let deleted = |id: &str, deleted: bool| if deleted { format!("{} (deleted)", short(id)) } else { short(id).to_owned() };
    for version in &block.versions {
        let (bucket, key, upload) = match &version.backlink {
            Some(BlockBacklink::Object { bucket_id, key }) => (bucket_id.short(), key.clone(), String::new()),
            Some(BlockBacklink::Upload { upload_id, upload_deleted, bucket_id, key, .. }) => (
                bucket_id.map(|id| id.short()).unwrap_or_default(),
                key.clone().unwrap_or_default(),
                deleted(&upload_id.to_string(), *upload_deleted),
            ),
            None => Default::default(),
        };
        let status = if version.ref_deleted { "deleted" } else { "active" };
        rows.push(vec![status.to_owned(), deleted(&version.version_id, version.version_deleted), bucket, key, upload]);
    }
    text += &table(&rows);
    if block.versions.iter().any(|version| version.ref_deleted != version.version_deleted) {
        text += "\nWarning: some references are deleted and their versions are not, or the other way round.\n\
                 This may be for a moment; if it stays, run: garage repair --yes block-refs\n";
    }
    let live = block.versions.iter().filter(|version| !version.ref_deleted).count() as u64;
    if live != block.refcount {
        text += &format!(
            "\nWarning: {live} references are active, but {} are counted; run: garage repair --yes block-rc\n",
            block.refcount
        );
    }
    text
}

pub fn purged(purged: &BlocksPurged) -> String {
    format!(
        "{} blocks were purged: {} block references, {} versions, {} objects and {} multipart uploads were removed.\n",
        purged.blocks_purged, purged.block_refs_purged, purged.versions_deleted, purged.objects_deleted, purged.uploads_deleted
    )
}

#[cfg(test)]
mod tests {
    use garage_admin::blocks::{BlockBacklink, BlockError, BlockInfo, BlockVersion};
    use garage_admin::nodes::Multi;
    use garage_admin::workers::{LastError, RepairType, WorkerInfo, WorkerState};
    use garage_block::scrub::ScrubCommand;
    use garage_types::{BucketId, NodeId};

    use super::{block_errors, block_info, info, launched, list};

    #[test]
    fn orders_to_a_scrub_are_answered_by_what_they_do() {
        let multi = Multi { success: [(NodeId::from_bytes([1; 32]), ())].into(), error: [].into() };
        assert_eq!(launched(&multi, RepairType::Blocks), "0101010101010101  Repair launched\n");
        assert_eq!(launched(&multi, RepairType::Scrub(ScrubCommand::Pause)), "0101010101010101  Scrub paused\n");
    }

    fn worker(id: u64, state: WorkerState) -> WorkerInfo {
        WorkerInfo {
            id,
            name: format!("job {id}"),
            state,
            errors: 0,
            consecutive_errors: 0,
            last_error: None,
            tranquility: None,
            progress: None,
            queue_length: None,
            persistent_errors: None,
            freeform: vec![],
        }
    }

    #[test]
    fn workers_are_listed_busy_first_then_idle_then_done() {
        let failing = WorkerInfo {
            errors: 3,
            consecutive_errors: 1,
            last_error: Some(LastError { message: "peer unreachable".into(), secs_ago: 120 }),
            tranquility: Some(2),
            queue_length: Some(26_541),
            ..worker(7, WorkerState::Throttled { duration_secs: 0.12 })
        };
        let done = WorkerInfo { progress: Some("512 (3)".into()), ..worker(1, WorkerState::Done) };
        let text = list(&[done, worker(2, WorkerState::Idle), failing.clone()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "TID  State  Name   Tranq  Done     Queue  Errors  Consec  Last");
        assert_eq!(lines[1], "7    Busy*  job 7  2      -        26541  3       1       2 minutes ago");
        assert_eq!(lines[2], "2    Idle   job 2  -      -        -      -       -       -");
        assert_eq!(lines[3], "1    Done   job 1  -      512 (3)  -      -       -       -");
        let text = info(&failing);
        assert!(text.contains("Worker state:      Busy (throttled, paused for 0.120s)\n"), "{text}");
        assert!(text.contains("Last error:        peer unreachable\n"), "{text}");
    }

    #[test]
    fn a_block_shows_who_refers_to_it_and_what_contradicts_itself() {
        let version = |digit: &str, ref_deleted| BlockVersion {
            version_id: digit.repeat(64),
            ref_deleted,
            version_deleted: false,
            garbage_collected: false,
            backlink: Some(BlockBacklink::Object { bucket_id: BucketId::from_bytes([0x9f; 32]), key: "docs/a.bin".into() }),
        };
        let block = |refcount, versions| BlockInfo { block_hash: "aa".repeat(32), refcount, present: true, versions };
        let text = block_info(&block(1, vec![version("7", false)]));
        assert!(text.contains("active  7777777777777777  9f9f9f9f9f9f9f9f  docs/a.bin\n") && !text.contains("Warning"), "{text}");
        let text = block_info(&block(2, vec![version("7", true)]));
        assert!(
            text.contains("repair --yes block-refs") && text.contains("0 references are active, but 2 are counted"),
            "{text}"
        );
    }

    #[test]
    fn failed_blocks_say_when_they_are_tried_again() {
        let error = |next_try_in_secs| BlockError {
            block_hash: "aa".into(),
            refcount: 1,
            error_count: 4,
            last_try_secs_ago: 720,
            next_try_in_secs,
            last_error: String::new(),
        };
        let text = block_errors(&[error(180), error(0)]);
        assert!(
            text.ends_with("aa    1   4       12 minutes ago  in 3 minutes\naa    1   4       12 minutes ago  in asap\n"),
            "{text}"
        );
    }
}
