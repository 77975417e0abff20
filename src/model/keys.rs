//! Operations on access keys.

use std::sync::Arc;

use garage_table::TableError;
use garage_types::crdt::{Deletable, Lww};
use garage_types::{BucketId, KeyId, Secret, Timestamp};
use tokio::time::Instant;

use crate::buckets::{all_rows, readable_rows};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::{KeyRow, KeyState, KeyTable, Permissions, placement_of};
use crate::misses::Miss;

/// A change of some of a key's attributes; `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    pub name: Option<String>,
    /// `Some(None)`: never expires.
    pub expiration: Option<Option<Timestamp>>,
    pub may_create_buckets: Option<bool>,
}

/// A key that exists.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: KeyId,
    pub state: KeyState,
}

/// The keys that exist, in the order of creation.
fn existing(rows: Vec<KeyRow>) -> Vec<Key> {
    let present = |row: KeyRow| match row.state {
        Deletable::Present(state) => Some(Key { id: row.id, state }),
        Deletable::Deleted => None,
    };
    let mut keys: Vec<Key> = rows.into_iter().filter_map(present).collect();
    keys.sort_by(|a, b| (a.state.created, &a.id).cmp(&(b.state.created, &b.id)));
    keys
}

/// A new secret: 64 hexadecimal digits.
fn generate_secret(random: &dyn garage_types::Random) -> Secret {
    Secret::new(hex::encode(random.bytes32()))
}

impl Garage {
    /// The row of a key, from memory when it has not changed; of one that is not here, as a quorum knows it.
    ///
    /// # Errors
    /// [`ModelError::Table`]; [`ModelError::UnknownKeys`] while others ask for so many unknown keys that nobody is asked about this one.
    pub async fn key_row(&self, id: &KeyId) -> Result<Option<Arc<KeyRow>>, ModelError> {
        loop {
            if let Some(known) = self.0.key_cache.get(id) {
                return Ok(known);
            }
            let read_at = self.0.key_cache.about_to_read();
            let here = match self.0.keys.get_here(placement_of(id), Vec::new()).await {
                Err(TableError::Rebuilding | TableError::DamagedRow { .. }) => None,
                here => here?,
            };
            let row = match here {
                Some(row) => row,
                None => match self.0.misses.look(id, Instant::now()) {
                    Miss::Absent => return Ok(None),
                    Miss::TooMany => return Err(ModelError::UnknownKeys),
                    Miss::Asking(answer) => {
                        // It ends without a message, whatever the answer was.
                        drop(answer.await);
                        continue;
                    }
                    Miss::Ask(question) => match Box::pin(self.0.keys.get(placement_of(id), Vec::new())).await? {
                        Some(row) => {
                            question.found();
                            row
                        }
                        None => {
                            question.absent(Instant::now());
                            return Ok(None);
                        }
                    },
                },
            };
            let row = Some(Arc::new(row));
            // Absent ones are not kept here: strangers would make good keys be forgotten.
            self.0.key_cache.put(read_at, id.clone(), row.clone());
            return Ok(row);
        }
    }

    /// # Errors
    /// [`ModelError::NoSuchAccessKey`] when it does not exist or is deleted.
    pub async fn key(&self, id: &KeyId) -> Result<Key, ModelError> {
        let row = self.key_row(id).await?;
        let state = row.as_ref().and_then(|row| row.state.as_option());
        let state = state.ok_or_else(|| ModelError::NoSuchAccessKey(id.to_string()))?;
        Ok(Key { id: id.clone(), state: state.clone() })
    }

    /// A key as a quorum knows it: what is refused for a permission that is missing here may have been allowed elsewhere.
    ///
    /// # Errors
    /// [`ModelError::NoSuchAccessKey`] when it does not exist or is deleted.
    pub async fn key_as_agreed(&self, id: &KeyId) -> Result<Key, ModelError> {
        let row = self.0.keys.get(placement_of(id), Vec::new()).await?;
        let state = row.and_then(|row| row.state.as_option().cloned());
        let state = state.ok_or_else(|| ModelError::NoSuchAccessKey(id.to_string()))?;
        Ok(Key { id: id.clone(), state })
    }

    /// All keys that exist, in the order of creation. For decisions: a damaged row is an error.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn keys(&self) -> Result<Vec<Key>, ModelError> {
        Ok(existing(all_rows::<KeyTable>(&self.0.local.tables).await?))
    }

    /// As [`Self::keys`], for lists that people read: without those whose rows nobody can read.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn readable_keys(&self) -> Result<Vec<Key>, ModelError> {
        Ok(existing(readable_rows(&self.0.keys).await?))
    }

    /// Makes a key with a generated id and secret.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn create_key(&self, name: &str, expiration: Option<Timestamp>) -> Result<Key, ModelError> {
        let id = KeyId::generate(&*self.0.random);
        self.add_key(id, generate_secret(&*self.0.random), name, expiration).await
    }

    /// Takes over a key made elsewhere.
    ///
    /// # Errors
    /// [`ModelError::KeyExists`] when the id is or ever was in use.
    pub async fn import_key(&self, id: KeyId, secret: Secret, name: &str) -> Result<Key, ModelError> {
        if self.0.keys.get(placement_of(&id), Vec::new()).await?.is_some() {
            return Err(ModelError::KeyExists(id));
        }
        self.add_key(id, secret, name, None).await
    }

    async fn add_key(&self, id: KeyId, secret: Secret, name: &str, expiration: Option<Timestamp>) -> Result<Key, ModelError> {
        let now = self.0.clock.now();
        let mut row = KeyRow::new(id, secret, name, now);
        if let Deletable::Present(state) = &mut row.state {
            state.expiration = Lww::at(now, expiration);
        }
        self.0.keys.merge(&row).await?;
        tracing::info!(key = %row.id, name, "access key created");
        self.key(&row.id).await
    }

    /// # Errors
    /// [`ModelError::NoSuchAccessKey`].
    pub async fn change_key(&self, id: &KeyId, change: KeyChange) -> Result<Key, ModelError> {
        self.edit_key(id, |state, now| {
            if let Some(name) = change.name {
                state.name.update(now, name);
            }
            if let Some(expiration) = change.expiration {
                state.expiration.update(now, expiration);
            }
            if let Some(may) = change.may_create_buckets {
                state.may_create_buckets.update(now, may);
            }
        })
        .await
    }

    /// Sets what a key may do with a bucket.
    ///
    /// # Errors
    /// [`ModelError::NoSuchAccessKey`].
    pub async fn set_permissions(&self, id: &KeyId, bucket: BucketId, permissions: Permissions) -> Result<Key, ModelError> {
        tracing::info!(key = %id, %bucket, %permissions, "permissions set");
        self.edit_key(id, |state, now| state.buckets.update(now, bucket, permissions)).await
    }

    async fn edit_key(&self, id: &KeyId, edit: impl FnOnce(&mut KeyState, Timestamp)) -> Result<Key, ModelError> {
        let missing = || ModelError::NoSuchAccessKey(id.to_string());
        let mut row = self.0.keys.get(placement_of(id), Vec::new()).await?.ok_or_else(missing)?;
        let Deletable::Present(state) = &mut row.state else { return Err(missing()) };
        edit(state, self.0.clock.now());
        self.0.keys.merge(&row).await?;
        self.key(id).await
    }

    /// Deletes a key, its permissions and its own names for buckets.
    ///
    /// # Errors
    /// [`ModelError::NoSuchAccessKey`].
    pub async fn delete_key(&self, id: &KeyId) -> Result<(), ModelError> {
        self.key(id).await?;
        for alias in self.aliases().await?.into_iter().filter(|alias| alias.key.as_ref() == Some(id)) {
            self.free_alias(&alias).await?;
        }
        self.0.keys.merge(&KeyRow { id: id.clone(), state: Deletable::Deleted }).await?;
        tracing::info!(key = %id, "access key deleted");
        Ok(())
    }
}
