//! A value of this node's own that survives restarts: one small file in the metadata directory, replaced atomically.
//!
//! Must stay true: only a file that does not exist means the default; one that cannot be read stops the node, with its path.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garage_types::codec::{DecodeError, Format, decode, encode};
use garage_types::disk::{Access, FileError, read_state, replace_atomically};
use garage_types::offload::{Lost, offload};
use garage_types::{Disk, Offload};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot read {}", path.display())]
    Decode {
        path: PathBuf,
        #[source]
        source: DecodeError,
    },
    #[error("the work on a state file was interrupted")]
    Lost(#[from] Lost),
}

/// Where state files are kept, and how.
#[derive(Clone)]
pub struct StateDirectory {
    pub disk: Arc<dyn Disk>,
    pub offload: Arc<dyn Offload>,
    pub path: PathBuf,
}

/// A value and its file.
pub struct StateFile<T> {
    directory: StateDirectory,
    path: PathBuf,
    value: Mutex<T>,
    /// Held through a change, so that changes reach the file one after another.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl<T: Format + Serialize + DeserializeOwned + Clone + Send + 'static> StateFile<T> {
    /// Reads the file called `name`, or takes `initial` when there is none.
    ///
    /// # Errors
    /// [`StateFileError`].
    pub async fn open(directory: &StateDirectory, name: &str, initial: T) -> Result<Self, StateFileError> {
        let path = directory.path.join(name);
        let (disk, file) = (directory.disk.clone(), path.clone());
        let bytes = offload(&*directory.offload, move || read_state(&*disk, &file)).await??;
        let value = match bytes {
            Some(bytes) => decode(&bytes).map_err(|source| StateFileError::Decode { path: path.clone(), source })?,
            None => initial,
        };
        Ok(StateFile { directory: directory.clone(), path, value: Mutex::new(value), changing: Arc::default() })
    }

    pub fn get(&self) -> T {
        self.lock().clone()
    }

    /// Changes the value; once this returns, it is on stable storage.
    ///
    /// # Errors
    /// [`StateFileError`]; the value is then as before, whatever the file holds.
    pub async fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, StateFileError> {
        let turn = self.changing.clone().lock_owned().await;
        let mut next = self.get();
        let outcome = change(&mut next);
        let (disk, path, content) = (self.directory.disk.clone(), self.path.clone(), encode(&next));
        offload(&*self.directory.offload, move || {
            let replaced = replace_atomically(&*disk, &path, &content, Access::Everyone);
            drop(turn);
            replaced
        })
        .await??;
        *self.lock() = next;
        Ok(outcome)
    }

    /// Assignments leave no half-made value behind.
    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use garage_types::Disk;
    use garage_types::codec::Format;
    use garage_types::disk::{Access, create_directories};
    use garage_types::memory_disk::MemoryDisk;
    use garage_types::offload::Inline;
    use serde::{Deserialize, Serialize};

    use super::{StateDirectory, StateFile, StateFileError};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Number {
        n: u32,
    }
    impl Format for Number {
        const TAG: &'static str = "num1";
    }

    #[tokio::test]
    async fn a_value_survives_and_a_damaged_file_is_an_error_not_a_default() {
        let disk = MemoryDisk::new();
        create_directories(&disk, Path::new("/meta")).unwrap();
        let directory = StateDirectory { disk: Arc::new(disk.clone()), offload: Arc::new(Inline), path: "/meta".into() };
        let open = || StateFile::open(&directory, "number", Number { n: 1 });
        let file = open().await.unwrap();
        assert_eq!(file.get(), Number { n: 1 });
        file.change(|value| value.n = 2).await.unwrap();
        disk.crash();
        assert_eq!(open().await.unwrap().get(), Number { n: 2 });
        disk.remove_file(Path::new("/meta/number")).unwrap();
        disk.create(Path::new("/meta/number"), &[b"num1 rubbish"], Access::Everyone).unwrap();
        assert!(matches!(open().await, Err(StateFileError::Decode { .. })));
    }
}
