//! Conversions between every pair of engines, and those that fail on the way.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{ConvertError, Phase, Place, Progress, convert, convert_through};
use crate::copy::summary;
use crate::engine::{Engine, EngineOptions, ReadRows, Storage, Tree, WriteRows};
use crate::error::{DbError, Limit};
use crate::open_storage;

/// More rows than one page has bytes for, an empty tree, and the longest key.
fn fill(storage: &dyn Storage) {
    let rows = storage.open_tree("rows").unwrap();
    storage.open_tree("empty").unwrap();
    let few = storage.open_tree("few").unwrap();
    storage
        .write(&mut |transaction| {
            (0..6000_u32).try_for_each(|key| transaction.insert(rows, &key.to_be_bytes(), &[key.to_le_bytes()[0]; 1500]))?;
            transaction.insert(few, &[0xff; crate::KEY_LENGTH_MAX], b"")?;
            transaction.insert(few, b"large", &vec![7; 5 << 20])
        })
        .unwrap();
}

fn filled(engine: Engine, path: &Path) {
    fill(&*open_storage(engine, path, &EngineOptions::default()).unwrap());
}

fn place(engine: Engine, path: &Path) -> Place {
    Place { engine, path: path.to_owned() }
}

#[test]
fn every_engine_takes_over_the_rows_of_every_other() {
    for from in Engine::ALL.iter().copied() {
        for to in Engine::ALL.iter().copied().filter(|to| *to != from) {
            let directory = tempfile::tempdir().unwrap();
            let (input, output) = (directory.path().join("in"), directory.path().join("new/out"));
            filled(from, &input);
            let mut last = None;
            let trees = convert(&place(from, &input), &place(to, &output), &EngineOptions::default(), &mut |progress| {
                last = Some(progress)
            });
            let trees = trees.unwrap();
            let rows: Vec<_> = trees.iter().map(|tree| (tree.name.as_str(), tree.rows)).collect();
            assert_eq!(rows, [("empty", 0), ("few", 2), ("rows", 6000)], "{from:?} to {to:?}");
            let all = Progress { phase: Phase::Comparing, rows: 6002, rows_total: 6002 };
            assert_eq!(last, Some(all), "{from:?} to {to:?}");
            for (engine, path) in [(from, &input), (to, &output)] {
                let storage = open_storage(engine, path, &EngineOptions::default()).unwrap();
                assert_eq!(summary(&*storage, &mut |_rows| {}).unwrap(), trees, "{from:?} to {to:?}");
            }
            assert_eq!(fs::read_dir(directory.path().join("new")).unwrap().count(), 1, "nothing else is left");
        }
    }
}

#[test]
fn conversion_that_makes_no_sense_is_refused_and_touches_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    let run = |from, to| convert(&place(from, &input), &place(to, &output), &EngineOptions::default(), &mut |_progress| {});
    let error = run(Engine::Lmdb, Engine::Lmdb).unwrap_err();
    assert!(matches!(error, ConvertError::SameEngine("lmdb")), "{error}");
    let error = run(Engine::Lmdb, Engine::Redb).unwrap_err();
    assert!(matches!(error, ConvertError::NoSource { engine: "lmdb", .. }), "{error}");
    assert!(!input.exists(), "looking for a source makes none");

    filled(Engine::Redb, &input);
    let error = run(Engine::Lmdb, Engine::Redb).unwrap_err();
    assert!(matches!(error, ConvertError::NoSource { engine: "lmdb", .. }), "another engine's: {error}");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("file"), "").unwrap();
    let error = run(Engine::Redb, Engine::Lmdb).unwrap_err();
    assert!(matches!(error, ConvertError::TargetExists { .. }), "{error}");
    fs::remove_file(output.join("file")).unwrap();
    run(Engine::Redb, Engine::Lmdb).unwrap();
}

#[test]
fn source_that_is_open_elsewhere_in_the_process_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    let _used = open_storage(Engine::Redb, &input, &EngineOptions::default()).unwrap();
    let outcome =
        convert(&place(Engine::Redb, &input), &place(Engine::Lmdb, &output), &EngineOptions::default(), &mut |_progress| {});
    assert!(matches!(outcome, Err(ConvertError::Source(DbError::AlreadyOpen { .. }))), "{outcome:?}");
    assert!(!output.exists());
}

/// An engine that runs out of room, or forgets a row, after some transactions.
struct Faulty {
    inner: Arc<dyn Storage>,
    left: AtomicU32,
    fault: Fault,
}

#[derive(Clone, Copy)]
enum Fault {
    Full,
    Forgets,
}

impl Storage for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        self.inner.open_tree(name)
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        self.inner.tree_names()
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        self.inner.read(body)
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        let is_last = self.left.fetch_sub(1, Ordering::SeqCst) == 1;
        match (is_last, self.fault) {
            (true, Fault::Full) => {
                Err(DbError::Full { limit: Limit::Disk, source: Arc::new(std::io::Error::from(std::io::ErrorKind::StorageFull)) })
            }
            (true, Fault::Forgets) => Ok(()),
            (false, _) => self.inner.write(body),
        }
    }

    fn sync(&self) -> Result<(), DbError> {
        self.inner.sync()
    }

    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        self.inner.snapshot_to(directory)
    }
}

#[test]
fn conversion_that_fails_leaves_no_target_and_can_be_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    let input = directory.path().join("in");
    filled(Engine::Lmdb, &input);
    let source = open_storage(Engine::Lmdb, &input, &EngineOptions::default()).unwrap();
    let run = |fault, left| {
        let open = |path: &Path| -> Result<Arc<dyn Storage>, DbError> {
            let inner = open_storage(Engine::Redb, path, &EngineOptions::default())?;
            Ok(Arc::new(Faulty { inner, left: AtomicU32::new(left), fault }))
        };
        convert_through(&*source, &output, open, &mut |_progress| {})
    };
    let left = || -> Vec<_> { fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    for transactions in 1..4 {
        let error = run(Fault::Full, transactions).unwrap_err();
        assert!(matches!(&error, ConvertError::Copy(error) if error.is_full()), "{error}");
        assert_eq!(left(), ["in"]);
    }
    let error = run(Fault::Forgets, 3).unwrap_err();
    assert!(matches!(&error, ConvertError::Differs { name, read, copied } if name == "few" && read > copied), "{error}");
    assert_eq!(left(), ["in"]);
    // What a killed conversion leaves has another name, and gives way to the next one.
    fs::create_dir(directory.path().join("out.partial")).unwrap();
    fs::write(directory.path().join("out.partial/data.redb"), "half").unwrap();
    run(Fault::Full, 100).unwrap();
    assert!(!directory.path().join("out.partial").exists());
}
