//! Whether LMDB's file is as long as what is in it, asked before the file is mapped: reading a mapped page behind the end of its file
//! kills the process.
//!
//! A file may be shorter than its last page number says and still be whole, since LMDB does not write pages that became free in the
//! transaction that took them. So where it is shorter, every page in use is looked for. Layout of version 1 of the format, with 64-bit words
//! in the byte order of the machine, from LMDB's documentation of its structures.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::DbError;
use crate::files::io_error;

const MAGIC: u32 = 0xBEEF_C0DE;
const VERSION: u32 = 1;
/// Bytes before what a page holds.
const PAGE_HEADER: usize = 16;
const META_LENGTH: usize = PAGE_HEADER + 136;
const PAGE_SIZE_MAX: usize = 64 << 10;

const BRANCH: u16 = 1;
const LEAF: u16 = 2;

const BIG_DATA: u16 = 1;
const SUB_TREE: u16 = 2;

/// No tree has this root: it is empty.
const NO_PAGE: u64 = u64::MAX;

/// Refuses a database file that lacks pages which are in use. One that is absent, empty, or not LMDB's is left to LMDB.
///
/// # Errors
/// [`DbError::CutShort`], [`DbError::Io`].
pub(super) fn check_length(path: &Path) -> Result<(), DbError> {
    if cfg!(not(target_pointer_width = "64")) {
        return Ok(());
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let bytes = file.metadata().map_err(io_error("ask for the length of", path))?.len();
    let Some(meta) = newest_meta(&file, bytes).map_err(io_error("read", path))? else { return Ok(()) };
    let expected = (meta.last_page + 1).saturating_mul(meta.page_size as u64);
    if bytes >= expected {
        return Ok(());
    }
    let pages = Pages { file: &file, page_size: meta.page_size, count: bytes / meta.page_size as u64 };
    match pages.are_all_there(&meta.roots).map_err(io_error("read", path))? {
        true => Ok(()),
        false => Err(DbError::CutShort { path: path.to_owned(), bytes, expected }),
    }
}

/// What one of the two meta pages says.
struct Meta {
    page_size: usize,
    roots: [u64; 2],
    last_page: u64,
    transaction: u64,
}

fn newest_meta(file: &File, bytes: u64) -> io::Result<Option<Meta>> {
    let Some(first) = read_meta(file, bytes, 0)? else { return Ok(None) };
    let second = read_meta(file, bytes, first.page_size as u64)?;
    Ok(Some(match second {
        Some(second) if second.transaction > first.transaction => second,
        _ => first,
    }))
}

fn read_meta(file: &File, bytes: u64, at: u64) -> io::Result<Option<Meta>> {
    if bytes < at + META_LENGTH as u64 {
        return Ok(None);
    }
    let mut page = [0; META_LENGTH];
    file.read_exact_at(&mut page, at)?;
    let page_size = u32_at(&page, 40).unwrap_or(0) as usize;
    let is_meta = u32_at(&page, 16) == Some(MAGIC) && u32_at(&page, 20) == Some(VERSION);
    if !is_meta || !page_size.is_power_of_two() || !(META_LENGTH..=PAGE_SIZE_MAX).contains(&page_size) {
        return Ok(None);
    }
    let word = |at| u64_at(&page, at).unwrap_or(NO_PAGE);
    Ok(Some(Meta { page_size, roots: [word(80), word(128)], last_page: word(136), transaction: word(144) }))
}

struct Pages<'f> {
    file: &'f File,
    page_size: usize,
    /// Whole pages in the file.
    count: u64,
}

impl Pages<'_> {
    /// Whether every page of these trees, and of the trees within them, is in the file.
    fn are_all_there(&self, roots: &[u64]) -> io::Result<bool> {
        let mut left: Vec<u64> = roots.iter().copied().filter(|root| *root != NO_PAGE).collect();
        let mut page = vec![0; self.page_size];
        // A damaged file may send us round in circles.
        let mut visits_left = self.count;
        while let Some(number) = left.pop() {
            if number >= self.count || visits_left == 0 {
                return Ok(false);
            }
            visits_left -= 1;
            self.file.read_exact_at(&mut page, number * self.page_size as u64)?;
            if !self.follow(&page, &mut left)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds the pages that a page refers to. Returns whether the page makes sense and its large values are in the file.
    fn follow(&self, page: &[u8], left: &mut Vec<u64>) -> io::Result<bool> {
        let (Some(flags), Some(lower)) = (u16_at(page, 10), u16_at(page, 12)) else { return Ok(false) };
        let nodes = usize::from(lower).saturating_sub(PAGE_HEADER) / 2;
        for node in 0..nodes {
            let Some(at) = u16_at(page, PAGE_HEADER + 2 * node).map(usize::from) else { return Ok(false) };
            let (Some(low), Some(node_flags), Some(key_length)) = (u32_at(page, at), u16_at(page, at + 4), u16_at(page, at + 6))
            else {
                return Ok(false);
            };
            let value = at + 8 + usize::from(key_length);
            match (flags & (BRANCH | LEAF), node_flags) {
                (BRANCH, high) => left.push(u64::from(low) | u64::from(high) << 32),
                (LEAF, flags) if flags & SUB_TREE != 0 => match u64_at(page, value + 40) {
                    None => return Ok(false),
                    Some(NO_PAGE) => {}
                    Some(root) => left.push(root),
                },
                (LEAF, flags) if flags & BIG_DATA != 0 => match u64_at(page, value) {
                    Some(first) if self.has_large_value(first)? => {}
                    _ => return Ok(false),
                },
                (LEAF, _) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn has_large_value(&self, first: u64) -> io::Result<bool> {
        if first >= self.count {
            return Ok(false);
        }
        let mut header = [0; PAGE_HEADER];
        self.file.read_exact_at(&mut header, first * self.page_size as u64)?;
        let pages = u32_at(&header, 12).unwrap_or(u32::MAX);
        Ok(first + u64::from(pages) <= self.count)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_ne_bytes(*word))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;

    use super::super::{FILE_NAME, LmdbEngine, LmdbOptions};
    use super::check_length;
    use crate::engine::Storage;
    use crate::error::DbError;

    fn fill(path: &Path) {
        let engine = LmdbEngine::open(path, LmdbOptions::default()).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        for batch in 0..20_u32 {
            let write = &mut |rows: &mut dyn crate::engine::WriteRows| {
                (0..50_u32).try_for_each(|n| {
                    let length = if n % 10 == 0 { 20_000 } else { 100 };
                    rows.insert(tree, &(batch * 50 + n).to_be_bytes(), &vec![7; length])
                })
            };
            engine.write(write).unwrap();
        }
    }

    #[test]
    fn a_file_cut_anywhere_within_its_pages_is_refused_before_it_is_mapped() {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let path = directory.path().join(FILE_NAME);
        check_length(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let whole = file.metadata().unwrap().len();
        for length in [whole - 4096, whole - 1, whole / 2, 5 * 4096, 3 * 4096] {
            let copy = directory.path().join(format!("cut-{length}"));
            std::fs::create_dir(&copy).unwrap();
            std::fs::copy(&path, copy.join(FILE_NAME)).unwrap();
            OpenOptions::new().write(true).open(copy.join(FILE_NAME)).unwrap().set_len(length).unwrap();
            let opened = LmdbEngine::open(&copy, LmdbOptions::default());
            assert!(matches!(opened, Err(DbError::CutShort { bytes, .. }) if bytes == length), "{length} of {whole} bytes");
        }
    }

    #[test]
    fn a_file_without_free_pages_at_its_end_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        fill(directory.path());
        let path = directory.path().join(FILE_NAME);
        let whole = std::fs::metadata(&path).unwrap().len();
        {
            let engine = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
            let tree = engine.open_tree("rows").unwrap();
            let remove = &mut |rows: &mut dyn crate::engine::WriteRows| {
                (500..1000_u32).try_for_each(|n| rows.remove(tree, &n.to_be_bytes()))
            };
            engine.write(remove).unwrap();
            // Frees the pages that the transaction before gave up.
            engine.write(&mut |rows| rows.insert(tree, b"small", b"")).unwrap();
            engine.write(&mut |rows| rows.insert(tree, b"small", b"1")).unwrap();
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        // As far as it can be cut and still have every page in use.
        let mut length = whole;
        while length > 4096 {
            file.set_len(length - 4096).unwrap();
            if check_length(&path).is_err() {
                break;
            }
            length -= 4096;
        }
        assert!(length < whole, "the last pages are free");
        file.set_len(length).unwrap();
        let engine = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        let mut rows = 0;
        engine.read(&mut |reading| rows = reading.count(tree).unwrap()).unwrap();
        assert_eq!(rows, 501);
    }
}
