//! Operations on buckets, their names, and who may use them.

use std::collections::BTreeMap;

use garage_model::alias::AliasScope;
use garage_model::bucket::Quotas;
use garage_model::buckets::{Alias, Bucket};
use garage_model::counters::Counts;
use garage_model::key::Permissions;
use garage_model::keys::Key;
use garage_types::{BucketId, KeyId};
use serde::{Deserialize, Serialize};

use crate::date::Date;
use crate::error::AdminError;
use crate::operations::{AdminService, Operation};
use crate::search;

/// What a key may do with a bucket. In changes, only what is set acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketKeyPerm {
    pub read: bool,
    pub write: bool,
    pub owner: bool,
}

impl From<Permissions> for BucketKeyPerm {
    fn from(Permissions { read, write, owner }: Permissions) -> Self {
        BucketKeyPerm { read, write, owner }
    }
}

impl BucketKeyPerm {
    fn allowed_on(self, present: Permissions) -> Permissions {
        Permissions { read: present.read || self.read, write: present.write || self.write, owner: present.owner || self.owner }
    }

    fn denied_on(self, present: Permissions) -> Permissions {
        Permissions { read: present.read && !self.read, write: present.write && !self.write, owner: present.owner && !self.owner }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct BucketQuotas {
    /// Bytes; `None`: no limit.
    pub max_size: Option<u64>,
    pub max_objects: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListBuckets;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalAlias {
    pub access_key_id: KeyId,
    pub alias: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketListItem {
    pub id: BucketId,
    pub created: Date,
    pub global_aliases: Vec<String>,
    pub local_aliases: Vec<LocalAlias>,
}

/// The buckets with their names, in the order given.
fn list_of(buckets: &[Bucket], aliases: &[Alias]) -> Vec<BucketListItem> {
    let mut by_bucket: BTreeMap<BucketId, Vec<&Alias>> = BTreeMap::new();
    for alias in aliases {
        by_bucket.entry(alias.bucket).or_default().push(alias);
    }
    let item = |bucket: &Bucket| {
        let aliases = by_bucket.get(&bucket.id).map_or(&[][..], Vec::as_slice);
        let local =
            |alias: &&Alias| alias.key.clone().map(|access_key_id| LocalAlias { access_key_id, alias: alias.name.clone() });
        BucketListItem {
            id: bucket.id,
            created: Date(bucket.state.created),
            global_aliases: aliases.iter().filter(|alias| alias.key.is_none()).map(|alias| alias.name.clone()).collect(),
            local_aliases: aliases.iter().filter_map(local).collect(),
        }
    };
    buckets.iter().map(item).collect()
}

impl Operation for ListBuckets {
    const ENDPOINT: &'static str = "admin.ListBuckets/1";
    type Reply = Vec<BucketListItem>;

    async fn run(self, service: &AdminService) -> Result<Vec<BucketListItem>, AdminError> {
        Ok(list_of(&service.garage.readable_buckets().await?, &service.garage.readable_aliases().await?))
    }
}

/// The rows of buckets, names and keys that the asked node knows to be damaged. What is listed may be short of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListDamagedRows;

/// A damaged row, by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DamagedRow {
    pub table: String,
    pub row: String,
}

/// Of each table.
const DAMAGED_ROWS_MAX: usize = 100;

impl Operation for ListDamagedRows {
    const ENDPOINT: &'static str = "admin.ListDamagedRows/1";
    type Reply = Vec<DamagedRow>;

    async fn run(self, service: &AdminService) -> Result<Vec<DamagedRow>, AdminError> {
        let rows = service.garage.damaged_list_rows(DAMAGED_ROWS_MAX);
        Ok(rows.into_iter().map(|damaged| DamagedRow { table: damaged.table.to_owned(), row: damaged.row }).collect())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketKey {
    pub access_key_id: KeyId,
    pub name: String,
    pub permissions: BucketKeyPerm,
    /// Names that are this key's own.
    pub bucket_local_aliases: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BucketInfo {
    pub id: BucketId,
    pub created: Date,
    pub global_aliases: Vec<String>,
    pub website_access: bool,
    pub keys: Vec<BucketKey>,
    pub objects: u64,
    pub bytes: u64,
    /// Simple and multipart ones.
    pub unfinished_uploads: u64,
    pub unfinished_multipart_uploads: u64,
    pub unfinished_multipart_upload_bytes: u64,
    pub quotas: BucketQuotas,
}

/// A bucket with its names, the keys that may use it or have names for it, and what it holds.
fn info_of(bucket: &Bucket, aliases: &[Alias], keys: &[Key], counts: &Counts) -> BucketInfo {
    let own = |key: Option<&KeyId>| -> Vec<String> {
        let fits = |alias: &&Alias| alias.bucket == bucket.id && alias.key.as_ref() == key;
        aliases.iter().filter(fits).map(|alias| alias.name.clone()).collect()
    };
    let bucket_key = |key: &Key| {
        let permissions = key.state.permissions(&bucket.id);
        let local = own(Some(&key.id));
        (permissions.any() || !local.is_empty()).then(|| BucketKey {
            access_key_id: key.id.clone(),
            name: key.state.name.get().clone(),
            permissions: permissions.into(),
            bucket_local_aliases: local,
        })
    };
    // Counts are sums of changes that replicas may see in another order: below zero they have not all arrived.
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let quotas = bucket.state.quotas.get();
    BucketInfo {
        id: bucket.id,
        created: Date(bucket.state.created),
        global_aliases: own(None),
        website_access: false,
        keys: keys.iter().filter_map(bucket_key).collect(),
        objects: count(counts.objects),
        bytes: count(counts.bytes),
        unfinished_uploads: count(counts.uploads),
        unfinished_multipart_uploads: count(counts.multipart_uploads),
        unfinished_multipart_upload_bytes: count(counts.multipart_bytes),
        quotas: BucketQuotas { max_size: quotas.size_bytes_max, max_objects: quotas.objects_max },
    }
}

async fn info(service: &AdminService, id: BucketId) -> Result<BucketInfo, AdminError> {
    let garage = &service.garage;
    let bucket = garage.bucket(id).await?;
    let (aliases, keys) = (garage.readable_aliases().await?, garage.readable_keys().await?);
    Ok(info_of(&bucket, &aliases, &keys, &garage.bucket_counts(id).await?))
}

/// One bucket, by `id`, by `globalAlias`, or by `search`: a global alias, else an id or the beginning of one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct GetBucketInfo {
    pub id: Option<BucketId>,
    pub global_alias: Option<String>,
    pub search: Option<String>,
}

impl Operation for GetBucketInfo {
    const ENDPOINT: &'static str = "admin.GetBucketInfo/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        let id = match (self.id, self.global_alias, self.search) {
            (Some(id), None, None) => id,
            (None, Some(name), None) => {
                let target = service.garage.alias_target(&AliasScope::Global, &name).await?;
                target.ok_or(garage_model::ModelError::NoSuchBucket(name))?
            }
            (None, None, Some(pattern)) => find(service, &pattern).await?,
            _ => return Err(AdminError::ExactlyOneOf("id, globalAlias and search")),
        };
        info(service, id).await
    }
}

async fn find(service: &AdminService, pattern: &str) -> Result<BucketId, AdminError> {
    if let Some(id) = service.garage.alias_target(&AliasScope::Global, pattern).await? {
        return Ok(id);
    }
    if let Ok(id) = pattern.parse() {
        return Ok(id);
    }
    let buckets = service.garage.buckets().await?;
    Ok(search::bucket(pattern, buckets.iter().map(|bucket| bucket.id))?)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateBucket {
    pub global_alias: String,
}

impl Operation for CreateBucket {
    const ENDPOINT: &'static str = "admin.CreateBucket/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        let id = service.garage.create_bucket(&self.global_alias).await?;
        info(service, id).await
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketUpdate {
    /// Replaces both limits.
    pub quotas: Option<BucketQuotas>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateBucket {
    pub id: BucketId,
    pub body: BucketUpdate,
}

impl Operation for UpdateBucket {
    const ENDPOINT: &'static str = "admin.UpdateBucket/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        if let Some(BucketQuotas { max_size, max_objects }) = self.body.quotas {
            service.garage.set_quotas(self.id, Quotas { size_bytes_max: max_size, objects_max: max_objects }).await?;
        }
        info(service, self.id).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteBucket {
    pub id: BucketId,
}

impl Operation for DeleteBucket {
    const ENDPOINT: &'static str = "admin.DeleteBucket/1";
    type Reply = ();

    async fn run(self, service: &AdminService) -> Result<(), AdminError> {
        Ok(service.garage.delete_bucket(self.id).await?)
    }
}

/// Which permissions of which key on which bucket to change.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PermissionChange {
    pub bucket_id: BucketId,
    pub access_key_id: String,
    pub permissions: BucketKeyPerm,
}

impl PermissionChange {
    async fn run(
        self,
        service: &AdminService,
        change: fn(BucketKeyPerm, Permissions) -> Permissions,
    ) -> Result<BucketInfo, AdminError> {
        let id = KeyId::parse(&self.access_key_id)?;
        service.garage.bucket(self.bucket_id).await?;
        let present = service.garage.key(&id).await?.state.permissions(&self.bucket_id);
        service.garage.set_permissions(&id, self.bucket_id, change(self.permissions, present)).await?;
        info(service, self.bucket_id).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowBucketKey(pub PermissionChange);

impl Operation for AllowBucketKey {
    const ENDPOINT: &'static str = "admin.AllowBucketKey/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        self.0.run(service, BucketKeyPerm::allowed_on).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DenyBucketKey(pub PermissionChange);

impl Operation for DenyBucketKey {
    const ENDPOINT: &'static str = "admin.DenyBucketKey/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        self.0.run(service, BucketKeyPerm::denied_on).await
    }
}

/// A name of a bucket: `globalAlias`, or `localAlias` of `accessKeyId`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BucketAlias {
    pub bucket_id: BucketId,
    #[serde(default)]
    pub global_alias: Option<String>,
    #[serde(default)]
    pub access_key_id: Option<String>,
    #[serde(default)]
    pub local_alias: Option<String>,
}

/// A name and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    scope: AliasScope,
    name: String,
}

impl BucketAlias {
    fn name(&self) -> Result<Name, AdminError> {
        match (&self.global_alias, &self.access_key_id, &self.local_alias) {
            (Some(name), None, None) => Ok(Name { scope: AliasScope::Global, name: name.clone() }),
            (None, Some(key), Some(name)) => Ok(Name { scope: AliasScope::Local(KeyId::parse(key)?), name: name.clone() }),
            _ => Err(AdminError::ExactlyOneOf("globalAlias, or accessKeyId with localAlias")),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddBucketAlias(pub BucketAlias);

impl Operation for AddBucketAlias {
    const ENDPOINT: &'static str = "admin.AddBucketAlias/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        let Name { scope, name } = self.0.name()?;
        service.garage.bucket(self.0.bucket_id).await?;
        if let AliasScope::Local(key) = &scope {
            service.garage.key(key).await?;
        }
        service.garage.set_alias(&scope, &name, self.0.bucket_id).await?;
        info(service, self.0.bucket_id).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RemoveBucketAlias(pub BucketAlias);

impl Operation for RemoveBucketAlias {
    const ENDPOINT: &'static str = "admin.RemoveBucketAlias/1";
    type Reply = BucketInfo;

    async fn run(self, service: &AdminService) -> Result<BucketInfo, AdminError> {
        let Name { scope, name } = self.0.name()?;
        let bucket = self.0.bucket_id;
        if service.garage.alias_target(&scope, &name).await? != Some(bucket) {
            return Err(AdminError::NotItsName { name, bucket });
        }
        service.garage.unset_alias(&scope, &name, bucket).await?;
        info(service, bucket).await
    }
}

#[cfg(test)]
mod tests {
    use garage_model::alias::AliasScope;
    use garage_model::bucket::BucketRow;
    use garage_model::buckets::{Alias, Bucket};
    use garage_model::counters::Counts;
    use garage_model::key::{KeyRow, Permissions};
    use garage_model::keys::Key;
    use garage_types::{BucketId, KeyId, Secret, Timestamp};
    use serde_json::json;

    use super::{BucketAlias, BucketKeyPerm, UpdateBucket, info_of, list_of};

    const NOW: Timestamp = Timestamp::from_millis(1000);

    fn bucket(byte: u8) -> Bucket {
        let row = BucketRow::new(BucketId::from_bytes([byte; 32]), NOW);
        Bucket { id: row.id, state: row.state.as_option().unwrap().clone() }
    }

    fn key(id: &str, on: Option<(BucketId, Permissions)>) -> Key {
        let row = KeyRow::new(KeyId::parse(id).unwrap(), Secret::new("s"), "name", NOW);
        let mut state = row.state.as_option().unwrap().clone();
        if let Some((bucket, permissions)) = on {
            state.buckets.update(NOW, bucket, permissions);
        }
        Key { id: row.id, state }
    }

    #[test]
    fn true_flags_act_and_false_flags_leave_alone() {
        let change = BucketKeyPerm { read: true, ..BucketKeyPerm::default() };
        let writer = Permissions { write: true, ..Permissions::NONE };
        assert_eq!(change.allowed_on(writer), Permissions { read: true, write: true, owner: false });
        assert_eq!(change.denied_on(Permissions::ALL), Permissions { read: false, write: true, owner: true });
        assert_eq!(BucketKeyPerm::default().denied_on(Permissions::ALL), Permissions::ALL);
    }

    #[test]
    fn a_bucket_lists_its_names_and_the_keys_that_concern_it() {
        let (ours, other) = (bucket(1), bucket(2));
        let keys = [
            key("GKreader", Some((ours.id, Permissions { read: true, ..Permissions::NONE }))),
            key("GKnamer", None),
            key("GKstranger", Some((other.id, Permissions::ALL))),
            key("GKformer", Some((ours.id, Permissions::NONE))),
        ];
        let alias = |name: &str, bucket: &Bucket, key: Option<&Key>| Alias {
            name: name.into(),
            bucket: bucket.id,
            key: key.map(|key| key.id.clone()),
        };
        let aliases = [alias("photos", &ours, None), alias("mine", &ours, Some(&keys[1])), alias("else", &other, None)];
        let counts = Counts { objects: 7, bytes: -1, ..Counts::default() };
        let info = info_of(&ours, &aliases, &keys, &counts);
        assert_eq!(info.global_aliases, ["photos"]);
        assert_eq!((info.objects, info.bytes), (7, 0), "a count below zero is one that has not settled");
        let shown: Vec<&str> = info.keys.iter().map(|key| key.access_key_id.as_str()).collect();
        assert_eq!(shown, ["GKreader", "GKnamer"]);
        assert_eq!(info.keys[1].bucket_local_aliases, ["mine"]);

        let list = list_of(&[ours, other], &aliases);
        assert_eq!((list[0].global_aliases.len(), list[0].local_aliases.len()), (1, 1));
        assert_eq!(list[1].global_aliases, ["else"]);
    }

    #[test]
    fn a_name_is_global_or_one_key_s_own() {
        let name = |value| serde_json::from_value::<BucketAlias>(value).unwrap().name();
        let id = "01".repeat(32);
        assert_eq!(name(json!({ "bucketId": id, "globalAlias": "photos" })).unwrap().scope, AliasScope::Global);
        let local = name(json!({ "bucketId": id, "accessKeyId": "GKaa", "localAlias": "photos" })).unwrap();
        assert_eq!(local.scope, AliasScope::Local(KeyId::parse("GKaa").unwrap()));
        assert!(name(json!({ "bucketId": id })).is_err());
        assert!(name(json!({ "bucketId": id, "localAlias": "photos" })).is_err());
    }

    #[test]
    fn settings_that_this_version_does_not_have_are_refused_rather_than_ignored() {
        let id = "01".repeat(32);
        let website = json!({ "id": id, "body": { "websiteAccess": { "enabled": true } } });
        assert!(serde_json::from_value::<UpdateBucket>(website).is_err());
        let quotas = json!({ "id": id, "body": { "quotas": { "maxSize": 5 } } });
        let quotas = serde_json::from_value::<UpdateBucket>(quotas).unwrap().body.quotas.unwrap();
        assert_eq!((quotas.max_size, quotas.max_objects), (Some(5), None));
    }
}
