//! Which data directory holds which slice of the hash space.
//!
//! Pure; `open` reads and saves the layout as the state file `data_layout`. What must stay true: a directory that may hold blocks of a
//! slice stays among those of the slice for as long as it is configured, until [`DirectoryLayout::forget_secondaries`] is told
//! that everything was moved; and no more slices change their primary than the capacities demand.

use std::path::{Path, PathBuf};

use garage_types::BlockHash;
use garage_types::codec::Format;
use serde::{Deserialize, Serialize};

/// How many slices there are.
pub const SLICES: usize = 1024;

/// A data directory as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    pub path: PathBuf,
    pub usage: Usage,
}

/// What a data directory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// New blocks too; `capacity` (any unit, the same for all) decides the share.
    Writable { capacity: u64 },
    /// Blocks are read from it and moved out of it, none is added.
    ReadOnly,
}

/// What may be in a configured directory that the previous layout does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// It was in use before (it has our marker): any block may be there.
    MaybeBlocks,
}

/// Directories from which no layout can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoriesError {
    #[error("no data directory is writable: at least one needs a capacity above zero")]
    NoneWritable,
    #[error("the data directory {} is configured twice", path.display())]
    Twice { path: PathBuf },
    #[error("the data directory {} has no capacity; give it one, or make it read_only", path.display())]
    NoCapacity { path: PathBuf },
    #[error("the path of the data directory {} is not Unicode", path.display())]
    NotUnicode { path: PathBuf },
    #[error("{count} data directories are more than can be told apart")]
    TooMany { count: usize },
    #[error("the recorded layout of the data directories contradicts itself")]
    Contradiction,
}

/// One primary directory for every slice, and those where blocks of it may be left from before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryLayout {
    directories: Vec<String>,
    slices: Vec<Slice>,
}

/// Indices into the directories of the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    pub primary: u16,
    /// Newest former primary first.
    pub secondaries: Vec<u16>,
}

impl Format for DirectoryLayout {
    const TAG: &'static str = "ddir1";
}

impl Slice {
    /// Where to look for a block, in this order.
    pub fn places(&self) -> impl Iterator<Item = u16> + '_ {
        std::iter::once(self.primary).chain(self.secondaries.iter().copied())
    }
}

impl DirectoryLayout {
    /// The layout for `configured`, whose directories it lists in the same order. `found`: what is in each of them, for those that
    /// `previous` does not name.
    ///
    /// Same input, same output. The slices of one partition (a quarter of them, in a row) are spread over the directories in
    /// proportion too, so that a node with few partitions fills its directories evenly.
    ///
    /// # Errors
    /// [`DirectoriesError`].
    pub fn update(
        previous: Option<&DirectoryLayout>,
        configured: &[DataDirectory],
        found: &[Found],
    ) -> Result<Self, DirectoriesError> {
        assert_eq!(configured.len(), found.len(), "one finding for each directory");
        let directories = names_of(configured)?;
        let before = match previous {
            Some(previous) => previous.checked()?.translated(&directories),
            None => vec![Before::default(); SLICES],
        };
        let quotas = quotas(configured, &owned_counts(&before, directories.len()))?;
        let primaries = assign(&before, &quotas);
        let strays: Vec<u16> = (0..)
            .zip(&directories)
            .zip(found)
            .filter(|((_, name), found)| **found == Found::MaybeBlocks && !previous.is_some_and(|layout| layout.names(name)))
            .map(|((index, _), _)| index)
            .collect();
        let slices = primaries.into_iter().zip(before).map(|(primary, before)| {
            let others = before.primary.into_iter().chain(before.secondaries).chain(strays.iter().copied());
            Slice { primary, secondaries: others.filter(|&place| place != primary).collect() }
        });
        Ok(DirectoryLayout { slices: slices.collect(), directories })
    }

    /// The slice of a block.
    pub fn slice(&self, hash: BlockHash) -> &Slice {
        &self.slices[slice_index(hash)]
    }

    /// The directories, in the order the slices count them.
    pub fn directories(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.directories.iter().map(Path::new)
    }

    /// Whether the layout counts on this directory.
    pub fn names(&self, path: impl AsRef<Path>) -> bool {
        self.directories().any(|known| known == path.as_ref())
    }

    /// The layout in which blocks may also be in any directory of `writable`, for the slices whose primary is `absent`. The first of its
    /// own is another one from slice to slice, so that all share what `absent` would have taken.
    #[must_use]
    pub fn with_stand_ins(&self, absent: u16, writable: &[u16]) -> Self {
        let others: Vec<u16> = writable.iter().copied().filter(|&place| place != absent).collect();
        let mut turn = 0;
        let slices = self.slices.iter().map(|slice| {
            let mut slice = slice.clone();
            if slice.primary == absent {
                let (last, first) = others.split_at(turn % others.len().max(1));
                let missing = first.iter().chain(last).filter(|place| !slice.secondaries.contains(place));
                let missing: Vec<u16> = missing.copied().collect();
                slice.secondaries.extend(missing);
                turn += 1;
            }
            slice
        });
        DirectoryLayout { slices: slices.collect(), directories: self.directories.clone() }
    }

    /// Whether [`DirectoryLayout::with_stand_ins`] would add nothing for a block, whose primary is absent.
    pub fn has_stand_ins(&self, hash: BlockHash, writable: &[u16]) -> bool {
        let slice = self.slice(hash);
        writable.iter().all(|place| slice.places().any(|other| other == *place))
    }

    /// The layout once every block has been moved to its primary directory.
    #[must_use]
    pub fn forget_secondaries(&self) -> Self {
        let slices = self.slices.iter().map(|slice| Slice { primary: slice.primary, secondaries: Vec::new() });
        DirectoryLayout { directories: self.directories.clone(), slices: slices.collect() }
    }

    /// Itself, if it is one that [`DirectoryLayout::update`] can have made.
    fn checked(&self) -> Result<&Self, DirectoriesError> {
        let in_range = |slice: &Slice| slice.places().all(|place| usize::from(place) < self.directories.len());
        let sound = self.slices.len() == SLICES && self.slices.iter().all(in_range);
        if sound { Ok(self) } else { Err(DirectoriesError::Contradiction) }
    }

    /// What each slice was, in indices into `directories`; directories that are not among them are left out.
    fn translated(&self, directories: &[String]) -> Vec<Before> {
        let index_now = |name: &String| (0..).zip(directories).find(|(_, other)| *other == name).map(|(index, _)| index);
        let now: Vec<Option<u16>> = self.directories.iter().map(index_now).collect();
        let translate = |slice: &Slice| Before {
            primary: now[usize::from(slice.primary)],
            secondaries: slice.secondaries.iter().filter_map(|&place| now[usize::from(place)]).collect(),
        };
        self.slices.iter().map(translate).collect()
    }
}

/// A slice in the previous layout, as far as its directories are still configured.
#[derive(Clone, Default)]
struct Before {
    primary: Option<u16>,
    secondaries: Vec<u16>,
}

fn names_of(configured: &[DataDirectory]) -> Result<Vec<String>, DirectoriesError> {
    if configured.len() > SLICES {
        return Err(DirectoriesError::TooMany { count: configured.len() });
    }
    let mut names: Vec<String> = Vec::with_capacity(configured.len());
    for DataDirectory { path, usage } in configured {
        // Compared as paths: "/a/" and "/a" are one directory.
        let normal: PathBuf = path.components().collect();
        let name = normal.to_str().ok_or_else(|| DirectoriesError::NotUnicode { path: path.clone() })?;
        if names.iter().any(|other| other == name) {
            return Err(DirectoriesError::Twice { path: path.clone() });
        }
        if *usage == (Usage::Writable { capacity: 0 }) {
            return Err(DirectoriesError::NoCapacity { path: path.clone() });
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn owned_counts(before: &[Before], directories: usize) -> Vec<usize> {
    let mut counts = vec![0; directories];
    for primary in before.iter().filter_map(|slice| slice.primary) {
        counts[usize::from(primary)] += 1;
    }
    counts
}

/// How many slices each directory gets: in proportion to its capacity, what rounding leaves to the largest remainders, and among equal
/// ones to those that have more slices already, so that nothing moves without need.
fn quotas(configured: &[DataDirectory], owned: &[usize]) -> Result<Vec<usize>, DirectoriesError> {
    let capacity = |directory: &DataDirectory| match directory.usage {
        Usage::Writable { capacity } => u128::from(capacity),
        Usage::ReadOnly => 0,
    };
    let total: u128 = configured.iter().map(capacity).sum();
    if total == 0 {
        return Err(DirectoriesError::NoneWritable);
    }
    let shares: Vec<u128> = configured.iter().map(|directory| capacity(directory) * SLICES as u128).collect();
    let mut quotas: Vec<usize> = shares.iter().map(|share| (share / total) as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse((shares[index] % total, owned[index])), index));
    let missing = SLICES - quotas.iter().sum::<usize>();
    for index in order.into_iter().take(missing) {
        quotas[index] += 1;
    }
    Ok(quotas)
}

/// A primary for every slice: each directory keeps as many as its quota allows, the others go where there is room.
fn assign(before: &[Before], quotas: &[usize]) -> Vec<u16> {
    let mut room = quotas.to_vec();
    let mut assigned = kept(before, quotas);
    for &primary in assigned.iter().flatten() {
        room[usize::from(primary)] -= 1;
    }
    // First where blocks of the slice may be already, so that they need not move.
    for (slot, slice) in assigned.iter_mut().zip(before).filter(|(slot, _)| slot.is_none()) {
        *slot = slice.secondaries.iter().copied().find(|&place| room[usize::from(place)] > 0);
        if let Some(place) = *slot {
            room[usize::from(place)] -= 1;
        }
    }
    let rest = assigned.into_iter().map(|slot| {
        slot.unwrap_or_else(|| {
            let place = emptiest(&room, quotas);
            room[place] -= 1;
            place as u16
        })
    });
    rest.collect()
}

/// The primaries that stay. A directory that must give up some gives up slices from all over, not the last ones.
fn kept(before: &[Before], quotas: &[usize]) -> Vec<Option<u16>> {
    let owned = owned_counts(before, quotas.len());
    let mut seen = vec![0; quotas.len()];
    let keep = |slice: &Before| {
        let index = usize::from(slice.primary?);
        let (nth, stay) = (seen[index], quotas[index].min(owned[index]));
        seen[index] += 1;
        // Of every owned[index] steps exactly `stay` reach the next whole number.
        let stays = (nth + 1) * stay / owned[index] > nth * stay / owned[index];
        slice.primary.filter(|_| stays)
    };
    before.iter().map(keep).collect()
}

/// The directory with the largest part of its quota still free; taking turns in this way interleaves them.
fn emptiest(room: &[usize], quotas: &[usize]) -> usize {
    let free = (0..room.len()).filter(|&index| room[index] > 0);
    free.reduce(|best, other| if room[other] * quotas[best] > room[best] * quotas[other] { other } else { best })
        .expect("the quotas sum up to the number of slices")
}

/// The low ten of the first sixteen bits: every directory of two hash bytes lies in one slice, and every partition (the first eight
/// bits) in 256 of them.
fn slice_index(hash: BlockHash) -> usize {
    let [first, second, ..] = *hash.as_bytes();
    usize::from(u16::from_be_bytes([first, second])) % SLICES
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use garage_types::codec::{decode, encode};
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::{DataDirectory, DirectoriesError, DirectoryLayout, Found, SLICES, Usage};

    fn writable(path: &str, capacity: u64) -> DataDirectory {
        DataDirectory { path: path.into(), usage: Usage::Writable { capacity } }
    }

    fn read_only(path: &str) -> DataDirectory {
        DataDirectory { path: path.into(), usage: Usage::ReadOnly }
    }

    fn update(previous: Option<&DirectoryLayout>, configured: &[DataDirectory]) -> Result<DirectoryLayout, DirectoriesError> {
        DirectoryLayout::update(previous, configured, &vec![Found::Nothing; configured.len()])
    }

    fn primaries(layout: &DirectoryLayout, slices: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut counts = vec![0; layout.directories().len()];
        slices.for_each(|slice| counts[usize::from(layout.slices[slice].primary)] += 1);
        counts
    }

    #[test]
    fn slices_are_shared_in_proportion_to_capacity() {
        let layout = update(None, &[writable("/a", 1), writable("/b", 3), read_only("/c")]).unwrap();
        assert_eq!(primaries(&layout, 0..SLICES), [256, 768, 0]);
        assert!(layout.slices.iter().all(|slice| slice.secondaries.is_empty()));
    }

    #[test]
    fn each_partition_is_shared_in_proportion_too() {
        let layout = update(None, &[writable("/a", 1), writable("/b", 3)]).unwrap();
        for quarter in 0..4 {
            assert_eq!(primaries(&layout, quarter * 256..(quarter + 1) * 256), [64, 192]);
        }
    }

    #[test]
    fn a_new_directory_takes_its_share_and_the_former_primary_is_still_searched() {
        let old = update(None, &[writable("/a", 1)]).unwrap();
        let new = update(Some(&old), &[writable("/b", 1), writable("/a", 1)]).unwrap();
        assert_eq!(primaries(&new, 0..SLICES), [512, 512]);
        for slice in &new.slices {
            assert_eq!(slice.secondaries, if slice.primary == 0 { vec![1] } else { vec![] });
        }
        let again = update(Some(&new), &[writable("/b", 1), writable("/a", 1)]).unwrap();
        assert_eq!(again, new, "nothing moves without a change");
        assert!(new.forget_secondaries().slices.iter().all(|slice| slice.secondaries.is_empty()));
    }

    #[test]
    fn a_directory_made_read_only_is_still_searched() {
        let old = update(None, &[writable("/a", 1), writable("/b", 1)]).unwrap();
        let new = update(Some(&old), &[read_only("/a"), writable("/b", 1)]).unwrap();
        assert_eq!(primaries(&new, 0..SLICES), [0, 1024]);
        let back = update(Some(&new), &[writable("/a", 1), writable("/b", 1)]).unwrap();
        assert_eq!(primaries(&back, 0..SLICES), [512, 512]);
        for (slice, before) in back.slices.iter().zip(&old.slices) {
            assert!(slice.places().any(|place| place == before.primary));
        }
    }

    #[test]
    fn writable_directories_stand_in_for_an_absent_one_in_equal_parts() {
        let layout = update(None, &[writable("/a", 1), writable("/b", 1), writable("/c", 1), read_only("/d")]).unwrap();
        let with = layout.with_stand_ins(0, &[0, 1, 2]);
        let mut first = [0_usize; 4];
        for (slice, before) in with.slices.iter().zip(&layout.slices) {
            assert_eq!(slice.primary, before.primary);
            match slice.secondaries.as_slice() {
                [] => assert_ne!(slice.primary, 0),
                [one, other] => {
                    assert_eq!((slice.primary, one + other), (0, 3));
                    first[usize::from(*one)] += 1;
                }
                places => panic!("{places:?}"),
            }
        }
        assert_eq!((first[1] + first[2], first[1].abs_diff(first[2]) <= 1), (primaries(&layout, 0..SLICES)[0], true));
        assert_eq!(with.with_stand_ins(0, &[0, 1, 2]), with, "once is enough");
        let alone = update(None, &[writable("/a", 1)]).unwrap();
        assert_eq!(alone.with_stand_ins(0, &[0]), alone);
    }

    #[test]
    fn a_directory_that_went_is_no_longer_searched() {
        let old = update(None, &[writable("/a", 1), writable("/b", 1)]).unwrap();
        let new = update(Some(&old), &[writable("/b", 1)]).unwrap();
        assert!(new.slices.iter().all(|slice| slice.primary == 0 && slice.secondaries.is_empty()));
        assert!(!new.names("/a"));
    }

    #[test]
    fn a_directory_used_before_but_not_recorded_is_searched_for_everything() {
        let configured = [writable("/a", 1), writable("/b", 1)];
        let layout = DirectoryLayout::update(None, &configured, &[Found::MaybeBlocks; 2]).unwrap();
        assert!(layout.slices.iter().all(|slice| slice.places().count() == 2));
        let same = DirectoryLayout::update(Some(&layout.forget_secondaries()), &configured, &[Found::MaybeBlocks; 2]).unwrap();
        assert!(same.slices.iter().all(|slice| slice.secondaries.is_empty()), "what is recorded is known");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        assert_eq!(update(None, &[]), Err(DirectoriesError::NoneWritable));
        assert_eq!(update(None, &[read_only("/a")]), Err(DirectoriesError::NoneWritable));
        assert_eq!(update(None, &[writable("/a", 0)]), Err(DirectoriesError::NoCapacity { path: "/a".into() }));
        let twice = update(None, &[writable("/a", 1), read_only("/a/")]);
        assert_eq!(twice, Err(DirectoriesError::Twice { path: PathBuf::from("/a/") }));
    }

    #[test]
    fn a_recorded_layout_that_contradicts_itself_is_refused() {
        let configured = [writable("/a", 1)];
        let mut layout = update(None, &configured).unwrap();
        layout.slices[7].secondaries.push(1);
        assert_eq!(update(Some(&layout), &configured), Err(DirectoriesError::Contradiction));
        layout.slices.truncate(7);
        assert_eq!(update(Some(&layout), &configured), Err(DirectoriesError::Contradiction));
    }

    #[test]
    fn the_layout_survives_its_encoding() {
        let layout = update(None, &[writable("/a", 1), writable("/b", 2)]).unwrap();
        assert_eq!(decode::<DirectoryLayout>(&encode(&layout)).unwrap(), layout);
        assert_eq!(layout.directories().collect::<Vec<_>>(), [Path::new("/a"), Path::new("/b")]);
    }

    fn some_directories() -> impl Strategy<Value = Vec<DataDirectory>> {
        let one = |index: usize| {
            let capacities = (any::<bool>(), 1..u64::MAX).prop_map(move |(keep, capacity)| match (keep, capacity % 5) {
                (false, _) => None,
                (true, 0) => Some(read_only(&format!("/{index}"))),
                (true, _) => Some(writable(&format!("/{index}"), capacity)),
            });
            capacities.boxed()
        };
        let all: Vec<_> = (0..6).map(one).collect();
        all.prop_map(|all| all.into_iter().flatten().chain([writable("/always", 1 << 60)]).collect())
    }

    proptest! {
        #[test]
        fn a_change_moves_only_what_it_must_and_loses_no_place(a in some_directories(), b in some_directories(), c in some_directories()) {
            let mut layout = update(None, &a).unwrap();
            for configured in [b, c] {
                let next = update(Some(&layout), &configured).unwrap();
                let before: Vec<&Path> = layout.directories().collect();
                let after: Vec<&Path> = next.directories().collect();
                let mut moved = 0;
                for (old, new) in layout.slices.iter().zip(&next.slices) {
                    let places: Vec<&Path> = new.places().map(|place| after[usize::from(place)]).collect();
                    for place in old.places().map(|place| before[usize::from(place)]) {
                        prop_assert!(places.contains(&place) || !after.contains(&place), "{place:?} may hold blocks");
                    }
                    let mut distinct = places.clone();
                    distinct.sort_unstable();
                    distinct.dedup();
                    prop_assert_eq!(distinct.len(), places.len());
                    moved += usize::from(before[usize::from(old.primary)] != places[0]);
                }
                let had = primaries(&layout, 0..SLICES);
                let has = primaries(&next, 0..SLICES);
                let must = before.iter().zip(had).map(|(path, had)| {
                    let has = after.iter().position(|other| other == path).map_or(0, |index| has[index]);
                    had.saturating_sub(has)
                });
                prop_assert_eq!(moved, must.sum::<usize>());
                layout = next;
            }
        }
    }
}
