//! The promises of the local half, on the memory engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use garage_db::{Db, MemoryEngine};
use garage_rpc::quorum::NodeReply;
use garage_types::clock::ManualClock;
use garage_types::codec::{Format, encode};
use garage_types::crdt::{Crdt, Lww};
use garage_types::{NodeId, Placement, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::TableError;
use crate::schema::{Admission, Admit, Replication, Schema};
use crate::store::{Builder, LiveLayouts, TableStore, Vouch};
use crate::table::{MergedPage, merge_pages};
use crate::transaction::RowTransaction;
use crate::wire::{Entry, Mode, Order, Page, Projection, Range, RangeRow, Read, TableId, Verdict, Write};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    name: String,
    text: Lww<String>,
}

impl Format for Note {
    const TAG: &'static str = "not1";
}

impl Crdt for Note {
    fn merge(&mut self, other: &Self) {
        self.text.merge(&other.text);
    }
}

/// Refuses commits of the text "no"; queues a copy of every changed row that says "gone".
struct Notes;

impl Schema for Notes {
    const ID: TableId = TableId(200);
    const NAME: &'static str = "notes";
    const REPLICATION: Replication = Replication::Sharded;
    type Row = Note;

    fn placement(_row: &Note) -> Placement {
        Placement::from_bytes([5; 32])
    }

    fn sort_key(row: &Note) -> Vec<u8> {
        row.name.clone().into_bytes()
    }

    fn admit(&self, _tx: &mut RowTransaction<'_, '_>, row: &mut Note, how: Admit<'_>) -> Result<Admission, TableError> {
        let refused = how.mode == Mode::Commit && row.text.get() == "no";
        Ok(if refused { Admission::Answer(Verdict::Behind(row.text.timestamp())) } else { Admission::Merge })
    }

    fn changed(&self, tx: &mut RowTransaction<'_, '_>, _old: Option<&Note>, new: Option<&Note>) -> Result<(), TableError> {
        match new.filter(|note| note.text.get() == "gone") {
            Some(note) => tx.enqueue(&Notes::entry(note, Mode::Replicate)),
            None => Ok(()),
        }
    }

    fn summary(row: Note) -> Note {
        Note { text: Lww::at(row.text.timestamp(), String::new()), ..row }
    }
}

#[derive(Default)]
struct Oldest(AtomicU64);

impl LiveLayouts for Oldest {
    fn oldest_live(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn live(&self) -> Vec<garage_rpc::layout::VersionKey> {
        Vec::new()
    }

    fn admit(&self, _writer: NodeId, version: u64) -> Option<Vouch> {
        (version >= self.oldest_live()).then(|| Box::new(()) as Vouch)
    }

    fn is_rebuilding(&self) -> bool {
        false
    }

    fn may_collect(&self) -> bool {
        true
    }
}

struct Fixture {
    store: TableStore,
    engine: MemoryEngine,
    oldest: Arc<Oldest>,
}

fn open(engine: &MemoryEngine, oldest: &Arc<Oldest>) -> TableStore {
    let db = Db::open_memory(engine.clone()).unwrap();
    Builder::new(db).with(Arc::new(Notes)).unwrap().open(Arc::new(ManualClock::default()), oldest.clone()).unwrap()
}

fn fixture() -> Fixture {
    let (engine, oldest) = (MemoryEngine::new(), Arc::new(Oldest::default()));
    Fixture { store: open(&engine, &oldest), engine, oldest }
}

fn note(name: &str, time: u64, text: &str) -> Note {
    Note { name: name.to_owned(), text: Lww::at(Timestamp::from_millis(time), text.to_owned()) }
}

fn write(notes: &[Note], mode: Mode) -> Write {
    Write { layout: 0, entries: notes.iter().map(|note| Notes::entry(note, mode)).collect() }
}

async fn text_of(store: &TableStore, name: &str) -> Option<String> {
    let read = Read {
        layout: 0,
        table: Notes::ID,
        placement: Placement::from_bytes([5; 32]),
        sort_key: name.as_bytes().to_vec().into(),
    };
    let row = store.read(read).await.unwrap().row?;
    Some(Notes::decode(&row).unwrap().text.get().clone())
}

fn range(order: Order, limit: u32) -> Range {
    Range {
        layout: 0,
        table: Notes::ID,
        placement: Placement::from_bytes([5; 32]),
        from: b"b".to_vec().into(),
        to: Some(b"e".to_vec().into()),
        order,
        limit,
        projection: Projection::Whole,
    }
}

#[tokio::test]
async fn rows_merge_whatever_the_order_they_come_in() {
    let Fixture { store, .. } = fixture();
    for (time, text) in [(2, "second"), (1, "first"), (2, "second")] {
        assert_eq!(store.write(write(&[note("a", time, text)], Mode::Commit)).await.unwrap(), Verdict::Won);
    }
    assert_eq!(text_of(&store, "a").await.as_deref(), Some("second"));
    assert_eq!(text_of(&store, "b").await, None);
}

#[tokio::test]
async fn a_request_whose_last_row_is_refused_stores_none_of_them() {
    let Fixture { store, .. } = fixture();
    let verdict = store.write(write(&[note("a", 1, "yes"), note("b", 7, "no")], Mode::Commit)).await.unwrap();
    assert_eq!(verdict, Verdict::Behind(Timestamp::from_millis(7)));
    assert_eq!(text_of(&store, "a").await, None);
    let copied = store.write(write(&[note("b", 7, "no")], Mode::Replicate)).await.unwrap();
    assert_eq!(copied, Verdict::Won, "copies are never refused");
}

#[tokio::test]
async fn callers_under_a_retired_layout_or_an_old_epoch_are_refused() {
    let Fixture { store, oldest, .. } = fixture();
    oldest.0.store(3, Ordering::SeqCst);
    let stale = store.write(write(&[note("a", 1, "x")], Mode::Commit)).await;
    assert!(matches!(stale, Err(TableError::StaleLayout { caller: 0, oldest: 3 })), "{stale:?}");
    assert!(store.range(range(Order::Forward, 1)).await.is_err());
    let unknown = Entry { table: TableId(99), ..Notes::entry(&note("a", 1, "x"), Mode::Commit) };
    let unknown = store.write(Write { layout: 3, entries: vec![unknown] }).await;
    assert!(matches!(unknown, Err(TableError::UnknownTable(TableId(99)))), "{unknown:?}");
}

#[tokio::test]
async fn what_was_won_survives_a_crash() {
    let Fixture { store, engine, oldest } = fixture();
    store.write(write(&[note("a", 1, "kept")], Mode::Commit)).await.unwrap();
    engine.crash();
    assert_eq!(text_of(&open(&engine, &oldest), "a").await.as_deref(), Some("kept"));
}

#[tokio::test]
async fn ranges_are_cut_at_the_limit_and_say_so() {
    let Fixture { store, .. } = fixture();
    let notes: Vec<Note> = ["a", "b", "c", "d", "e"].map(|name| note(name, 1, name)).into();
    store.write(write(&notes, Mode::Commit)).await.unwrap();
    let names = |order, limit| {
        let store = store.clone();
        async move {
            let page = store.range(range(order, limit)).await.unwrap();
            let names: Vec<String> = page.rows.iter().map(|row| String::from_utf8_lossy(&row.sort_key).into_owned()).collect();
            (names.join(""), page.truncated)
        }
    };
    assert_eq!(names(Order::Forward, 9).await, ("bcd".to_owned(), false));
    assert_eq!(names(Order::Forward, 3).await, ("bcd".to_owned(), false));
    assert_eq!(names(Order::Forward, 2).await, ("bc".to_owned(), true));
    assert_eq!(names(Order::Backward, 2).await, ("dc".to_owned(), true));
    let summary = store.range(Range { projection: Projection::Summary, ..range(Order::Forward, 1) }).await.unwrap();
    assert_eq!(Notes::decode(&summary.rows[0].row).unwrap().text.get(), "");
}

#[tokio::test]
async fn a_range_with_more_rows_or_bytes_than_are_read_at_once_is_whole_all_the_same() {
    let Fixture { store, .. } = fixture();
    let names: Vec<String> = (0..40).map(|number| format!("b{number:02}")).collect();
    let notes: Vec<Note> = names.iter().map(|name| note(name, 1, name)).collect();
    store.write(write(&notes, Mode::Commit)).await.unwrap();
    let large = "x".repeat(100_000);
    store.write(write(&[note("c", 1, &large), note("d", 1, &large)], Mode::Commit)).await.unwrap();
    let read = |limit| store.range(range(Order::Forward, limit));
    let (whole, cut, backward) =
        (read(100).await.unwrap(), read(30).await.unwrap(), store.range(range(Order::Backward, 4)).await.unwrap());
    assert_eq!((whole.rows.len(), whole.truncated), (42, false));
    assert_eq!((cut.rows.len(), cut.truncated), (30, true));
    assert_eq!((backward.rows.len(), backward.truncated), (4, true));
}

#[tokio::test]
async fn a_deletion_queued_anew_meanwhile_stays_queued() {
    let Fixture { store, .. } = fixture();
    store.write(write(&[note("a", 1, "gone")], Mode::Commit)).await.unwrap();
    let first = store.queue_peek(None, 10).await.unwrap();
    assert_eq!((first.len(), store.queue_len().await.unwrap()), (1, 1));
    store.write(write(&[note("a", 2, "gone")], Mode::Commit)).await.unwrap();
    store.queue_remove(first).await.unwrap();
    let second = store.queue_peek(None, 10).await.unwrap();
    assert_eq!(second.len(), 1);
    store.queue_remove(second).await.unwrap();
    assert_eq!(store.queue_len().await.unwrap(), 0);
}

#[tokio::test]
async fn each_commit_that_touches_a_table_makes_its_caches_old() {
    let Fixture { store, .. } = fixture();
    let generation = store.generation(Notes::ID);
    let before = generation.load(Ordering::SeqCst);
    store.write(write(&[note("a", 1, "x")], Mode::Commit)).await.unwrap();
    assert!(generation.load(Ordering::SeqCst) > before);
}

#[tokio::test]
async fn a_commit_whose_caller_hung_up_makes_caches_old_all_the_same() {
    let Fixture { store, .. } = fixture();
    let generation = store.generation(Notes::ID);
    let before = generation.load(Ordering::SeqCst);
    // The memory engine commits at the first poll; the caller goes away before it hears of it.
    let abandoned = store.write(write(&[note("a", 1, "x")], Mode::Commit));
    drop(futures_util::poll!(Box::pin(abandoned)));
    assert_eq!(text_of(&store, "a").await.as_deref(), Some("x"));
    assert!(generation.load(Ordering::SeqCst) > before);
}

/// What an owner answers that has rows of these names, and more behind them.
fn truncated_page(owner: u8, names: &[&str]) -> NodeReply<Page> {
    let row = |name: &&str| {
        let note = Note { name: (*name).to_owned(), text: Lww::at(Timestamp::ZERO, "text".to_owned()) };
        RangeRow { sort_key: Notes::sort_key(&note).into(), row: encode(&note).into() }
    };
    NodeReply { node: NodeId::from_bytes([owner; 32]), reply: Page { rows: names.iter().map(row).collect(), truncated: true } }
}

#[test]
fn merged_page_ends_where_the_shortest_truncated_reply_ends() {
    // The second owner lacks b and c, so its page reaches further; what the first one has behind c is not known.
    let mut replies = [truncated_page(1, &["a", "b", "c"]), truncated_page(2, &["a", "d", "f"])];
    let names = |MergedPage { rows, last }: MergedPage<Note>| {
        (rows.into_iter().map(|row| row.sort_key).collect::<Vec<_>>().concat(), last)
    };
    let merged = |replies: &[_], order| names(merge_pages::<Notes>(replies, order).unwrap());
    assert_eq!(merged(&replies, Order::Forward), (b"abc".to_vec(), Some(b"c".to_vec())));
    replies.iter_mut().for_each(|reply| reply.reply.rows.reverse());
    replies[0].reply.rows.truncate(2);
    assert_eq!(merged(&replies, Order::Backward), (b"fdcb".to_vec(), Some(b"b".to_vec())));
}
