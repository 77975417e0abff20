//! Operations on access keys.

use std::collections::BTreeMap;

use garage_model::buckets::Alias;
use garage_model::keys::{Key, KeyChange};
use garage_types::{BucketId, KeyId, Secret, Timestamp};
use serde::{Deserialize, Serialize};

use crate::buckets::BucketKeyPerm;
use crate::date::Date;
use crate::error::AdminError;
use crate::operations::{AdminService, Operation};
use crate::search::{self, KeyCandidate};

const NAME_DEFAULT: &str = "Unnamed key";
const NAME_IMPORTED: &str = "Imported key";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListKeys;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyListItem {
    pub id: KeyId,
    pub name: String,
    pub created: Option<Date>,
    pub expiration: Option<Date>,
    pub expired: bool,
}

fn list_item(key: &Key, now: Timestamp) -> KeyListItem {
    KeyListItem {
        id: key.id.clone(),
        name: key.state.name.get().clone(),
        created: Some(Date(key.state.created)),
        expiration: key.state.expiration.get().map(Date),
        expired: key.state.is_expired(now),
    }
}

impl Operation for ListKeys {
    const ENDPOINT: &'static str = "admin.ListKeys/1";
    type Reply = Vec<KeyListItem>;

    async fn run(self, service: &AdminService) -> Result<Vec<KeyListItem>, AdminError> {
        let now = service.garage.clock().now();
        Ok(service.garage.readable_keys().await?.iter().map(|key| list_item(key, now)).collect())
    }
}

/// What a key may do beside what it may do with single buckets. In changes, only what is set acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyPerm {
    #[serde(default)]
    pub create_bucket: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyBucket {
    pub id: BucketId,
    pub global_aliases: Vec<String>,
    /// Names that are this key's own.
    pub local_aliases: Vec<String>,
    pub permissions: BucketKeyPerm,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    pub access_key_id: KeyId,
    pub name: String,
    /// Only where the operation says so.
    pub secret_access_key: Option<Secret>,
    pub created: Option<Date>,
    pub expiration: Option<Date>,
    pub expired: bool,
    pub permissions: KeyPerm,
    pub buckets: Vec<KeyBucket>,
}

/// Whether a reply holds the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShowSecret {
    Yes,
    No,
}

/// A key with the buckets it may use or has names for.
fn info_of(key: &Key, aliases: &[Alias], now: Timestamp, show: ShowSecret) -> KeyInfo {
    let mut buckets: BTreeMap<BucketId, KeyBucket> = BTreeMap::new();
    let entry = |id: BucketId| KeyBucket {
        id,
        global_aliases: Vec::new(),
        local_aliases: Vec::new(),
        permissions: key.state.permissions(&id).into(),
    };
    for (id, _permissions) in key.state.buckets.iter().filter(|(_id, permissions)| permissions.any()) {
        buckets.insert(*id, entry(*id));
    }
    for alias in aliases.iter().filter(|alias| alias.key.as_ref() == Some(&key.id)) {
        buckets.entry(alias.bucket).or_insert_with(|| entry(alias.bucket)).local_aliases.push(alias.name.clone());
    }
    for alias in aliases.iter().filter(|alias| alias.key.is_none()) {
        if let Some(bucket) = buckets.get_mut(&alias.bucket) {
            bucket.global_aliases.push(alias.name.clone());
        }
    }
    KeyInfo {
        access_key_id: key.id.clone(),
        name: key.state.name.get().clone(),
        secret_access_key: (show == ShowSecret::Yes).then(|| key.state.secret.clone()),
        created: Some(Date(key.state.created)),
        expiration: key.state.expiration.get().map(Date),
        expired: key.state.is_expired(now),
        permissions: KeyPerm { create_bucket: *key.state.may_create_buckets.get() },
        buckets: buckets.into_values().collect(),
    }
}

async fn info(service: &AdminService, id: &KeyId, show: ShowSecret) -> Result<KeyInfo, AdminError> {
    let key = service.garage.key(id).await?;
    let aliases = service.garage.readable_aliases().await?;
    Ok(info_of(&key, &aliases, service.garage.clock().now(), show))
}

/// One key, by `id` or by `search`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GetKeyInfo {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default)]
    pub search: Option<String>,
    #[serde(default)]
    pub show_secret_key: bool,
}

impl Operation for GetKeyInfo {
    const ENDPOINT: &'static str = "admin.GetKeyInfo/1";
    type Reply = KeyInfo;

    async fn run(self, service: &AdminService) -> Result<KeyInfo, AdminError> {
        let id = match (self.id, self.search) {
            (Some(id), None) => KeyId::parse(&id)?,
            (None, Some(pattern)) => find(service, &pattern).await?,
            _ => return Err(AdminError::ExactlyOneOf("id and search")),
        };
        info(service, &id, if self.show_secret_key { ShowSecret::Yes } else { ShowSecret::No }).await
    }
}

async fn find(service: &AdminService, pattern: &str) -> Result<KeyId, AdminError> {
    let keys = service.garage.keys().await?;
    let candidates: Vec<KeyCandidate<'_>> =
        keys.iter().map(|key| KeyCandidate { id: &key.id, name: key.state.name.get() }).collect();
    Ok(search::key(pattern, &candidates)?.clone())
}

/// What to change of a key; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KeyUpdate {
    pub name: Option<String>,
    pub expiration: Option<Date>,
    pub never_expires: bool,
    pub allow: Option<KeyPerm>,
    pub deny: Option<KeyPerm>,
}

impl KeyUpdate {
    fn change(self) -> Result<KeyChange, AdminError> {
        let expiration = match (self.expiration, self.never_expires) {
            (Some(_), true) => return Err(AdminError::Exclusive { first: "expiration", second: "neverExpires" }),
            (Some(date), false) => Some(Some(date.0)),
            (None, true) => Some(None),
            (None, false) => None,
        };
        let asks = |permissions: Option<KeyPerm>| permissions.is_some_and(|permissions| permissions.create_bucket);
        let may_create_buckets = match (asks(self.allow), asks(self.deny)) {
            (true, true) => return Err(AdminError::Exclusive { first: "allow.createBucket", second: "deny.createBucket" }),
            (true, false) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        Ok(KeyChange { name: self.name, expiration, may_create_buckets })
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CreateKey(pub KeyUpdate);

impl Operation for CreateKey {
    const ENDPOINT: &'static str = "admin.CreateKey/1";
    type Reply = KeyInfo;

    async fn run(self, service: &AdminService) -> Result<KeyInfo, AdminError> {
        let CreateKey(update) = self;
        let change = update.change()?;
        let name = change.name.as_deref().unwrap_or(NAME_DEFAULT);
        let key = service.garage.create_key(name, change.expiration.flatten()).await?;
        if change.may_create_buckets == Some(true) {
            service.garage.change_key(&key.id, KeyChange { may_create_buckets: Some(true), ..KeyChange::default() }).await?;
        }
        info(service, &key.id, ShowSecret::Yes).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImportKey {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    #[serde(default)]
    pub name: Option<String>,
}

/// Shortest secret that is taken over from another system.
pub const SECRET_LENGTH_MIN: usize = 16;

impl Operation for ImportKey {
    const ENDPOINT: &'static str = "admin.ImportKey/1";
    type Reply = KeyInfo;

    async fn run(self, service: &AdminService) -> Result<KeyInfo, AdminError> {
        let id = KeyId::parse(&self.access_key_id)?;
        // Keys of other systems are welcome, so that clients need no new ones; a secret that can be guessed is not.
        if self.secret_access_key.expose().len() < SECRET_LENGTH_MIN {
            return Err(AdminError::ShortSecret { id });
        }
        let name = self.name.as_deref().unwrap_or(NAME_IMPORTED);
        let key = service.garage.import_key(id, self.secret_access_key, name).await?;
        info(service, &key.id, ShowSecret::No).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateKey {
    pub id: String,
    pub body: KeyUpdate,
}

impl Operation for UpdateKey {
    const ENDPOINT: &'static str = "admin.UpdateKey/1";
    type Reply = KeyInfo;

    async fn run(self, service: &AdminService) -> Result<KeyInfo, AdminError> {
        let key = service.garage.change_key(&KeyId::parse(&self.id)?, self.body.change()?).await?;
        info(service, &key.id, ShowSecret::No).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteKey {
    pub id: String,
}

impl Operation for DeleteKey {
    const ENDPOINT: &'static str = "admin.DeleteKey/1";
    type Reply = ();

    async fn run(self, service: &AdminService) -> Result<(), AdminError> {
        Ok(service.garage.delete_key(&KeyId::parse(&self.id)?).await?)
    }
}

#[cfg(test)]
mod tests {
    use garage_model::buckets::Alias;
    use garage_model::key::{KeyRow, Permissions};
    use garage_model::keys::Key;
    use garage_types::{BucketId, KeyId, Secret, Timestamp};
    use serde_json::json;

    use super::{CreateKey, KeyUpdate, ShowSecret, info_of};

    #[test]
    fn the_secret_is_in_a_reply_only_when_asked_for() {
        let now = Timestamp::from_millis(1000);
        let id = KeyId::parse("GK0123456789abcdef01234567").unwrap();
        let row = KeyRow::new(id.clone(), Secret::new("s3cr3t"), "web", now);
        let mut state = row.state.as_option().unwrap().clone();
        let buckets = [1, 2, 3].map(|byte| BucketId::from_bytes([byte; 32]));
        state.buckets.update(now, buckets[0], Permissions { read: true, ..Permissions::NONE });
        state.buckets.update(now, buckets[1], Permissions::NONE);
        let alias = |name: &str, bucket, key| Alias { name: name.into(), bucket, key };
        let aliases =
            [alias("photos", buckets[0], None), alias("mine", buckets[2], Some(id.clone())), alias("other", buckets[1], None)];
        let key = Key { id, state };
        let info = info_of(&key, &aliases, now, ShowSecret::No);
        assert_eq!(info.secret_access_key, None);
        assert_eq!(info_of(&key, &aliases, now, ShowSecret::Yes).secret_access_key, Some(Secret::new("s3cr3t")));
        let shown: Vec<BucketId> = info.buckets.iter().map(|bucket| bucket.id).collect();
        assert_eq!(shown, [buckets[0], buckets[2]], "no withdrawn permissions, but buckets it has names for");
        assert_eq!(info.buckets[0].global_aliases, ["photos"]);
        assert_eq!(info.buckets[1].local_aliases, ["mine"]);
    }

    #[test]
    fn updates_change_only_what_they_name() {
        let read = |value| serde_json::from_value::<KeyUpdate>(value).unwrap();
        let change = read(json!({ "expiration": "2030-01-01T00:00:00Z" })).change().unwrap();
        assert!(change.expiration.is_some_and(|expiration| expiration.is_some()) && change.name.is_none());
        assert_eq!(read(json!({ "neverExpires": true })).change().unwrap().expiration, Some(None));
        assert_eq!(read(json!({ "deny": { "createBucket": true } })).change().unwrap().may_create_buckets, Some(false));
        assert_eq!(read(json!({ "allow": { "createBucket": false } })).change().unwrap().may_create_buckets, None);
        assert!(read(json!({ "neverExpires": true, "expiration": "2030-01-01T00:00:00Z" })).change().is_err());
        let CreateKey(create) = serde_json::from_value(json!({ "name": "web" })).unwrap();
        assert_eq!(create.name.as_deref(), Some("web"));
    }
}
