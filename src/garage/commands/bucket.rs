//! `garage bucket …`

use std::time::Duration;

use garage_admin::buckets::{
    AddBucketAlias, AllowBucketKey, BucketAlias, BucketInfo, BucketKey, BucketKeyPerm, BucketQuotas, BucketUpdate, CreateBucket,
    DeleteBucket, DenyBucketKey, GetBucketInfo, ListBuckets, PermissionChange, RemoveBucketAlias, UpdateBucket,
};
use garage_admin::keys::{GetKeyInfo, KeyInfo};
use garage_admin::objects::{CleanupIncompleteUploads, InspectObject, UploadsCleanedUp};
use garage_types::BucketId;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{confirmed, damaged_rows};
use crate::args::bucket::{BucketCommand, PermissionArgs};
use crate::args::value::Limit;
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::Output;
use crate::show::bucket as show;
use crate::show::object::object as show_object;

pub(super) async fn run(daemon: &Daemon, command: BucketCommand, output: Output) -> Result<(), CliError> {
    let info = match command {
        BucketCommand::List => {
            let buckets = daemon.call(ListBuckets).await?;
            let damaged = damaged_rows(daemon, output).await?;
            return output.reply(&buckets, |buckets| show::list(buckets, &TimeZone::system()) + &show::damaged(&damaged));
        }
        BucketCommand::Delete { bucket, yes } => return delete(daemon, &bucket, yes, output).await,
        BucketCommand::CleanupIncompleteUploads { buckets, older_than } => {
            return clean_up(daemon, &buckets, older_than, output).await;
        }
        BucketCommand::InspectObject { bucket, key } => {
            let bucket_id = find(daemon, &bucket).await?.id;
            let object = daemon.call(InspectObject { bucket_id, key }).await?;
            return output.reply(&object, |object| show_object(object, &TimeZone::system()));
        }
        BucketCommand::Info { bucket } => find(daemon, &bucket).await?,
        BucketCommand::Create { name } => daemon.call(CreateBucket { global_alias: name }).await?,
        BucketCommand::Alias { bucket, name, local } => {
            let bucket = find(daemon, &bucket).await?;
            let alias = alias(bucket.id, name, key_of(daemon, local).await?);
            daemon.call(AddBucketAlias(alias)).await?
        }
        BucketCommand::Unalias { name, local } => {
            let key = key_of(daemon, local).await?;
            let asked = match &key {
                None => GetBucketInfo { global_alias: Some(name.clone()), ..GetBucketInfo::default() },
                Some(key) => GetBucketInfo { id: Some(local_target(key, &name)?), ..GetBucketInfo::default() },
            };
            let bucket = daemon.call(asked).await?;
            may_unalias(&bucket, &name)?;
            daemon.call(RemoveBucketAlias(alias(bucket.id, name, key))).await?
        }
        BucketCommand::Allow(args) => daemon.call(AllowBucketKey(permission_change(daemon, &args).await?)).await?,
        BucketCommand::Deny(args) => daemon.call(DenyBucketKey(permission_change(daemon, &args).await?)).await?,
        BucketCommand::SetQuotas { bucket, max_size, max_objects } => {
            let bucket = find(daemon, &bucket).await?;
            let quotas = Some(quotas(bucket.quotas, max_size, max_objects));
            daemon.call(UpdateBucket { id: bucket.id, body: BucketUpdate { quotas } }).await?
        }
    };
    output.reply(&info, |info| show::info(info, &TimeZone::system()))
}

/// One line a bucket.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CleanedUp {
    bucket: String,
    uploads_deleted: u64,
}

async fn clean_up(daemon: &Daemon, patterns: &[String], older_than: Duration, output: Output) -> Result<(), CliError> {
    // All are looked up first: a name mistyped changes nothing.
    let mut buckets = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        buckets.push((pattern, find(daemon, pattern).await?.id));
    }
    let mut done = Vec::with_capacity(buckets.len());
    for (pattern, bucket_id) in buckets {
        let cleanup = CleanupIncompleteUploads { bucket_id, older_than_secs: older_than.as_secs() };
        let UploadsCleanedUp { uploads_deleted } = daemon.call(cleanup).await?;
        done.push(CleanedUp { bucket: pattern.clone(), uploads_deleted });
    }
    output.reply(&done, |done| {
        done.iter().map(|one| format!("{}: {} uploads aborted\n", one.bucket, one.uploads_deleted)).collect()
    })
}

async fn find(daemon: &Daemon, pattern: &str) -> Result<BucketInfo, CliError> {
    daemon.call(GetBucketInfo { search: Some(pattern.to_owned()), ..GetBucketInfo::default() }).await
}

async fn key_of(daemon: &Daemon, pattern: Option<String>) -> Result<Option<KeyInfo>, CliError> {
    match pattern {
        None => Ok(None),
        search => daemon.call(GetKeyInfo { search, ..GetKeyInfo::default() }).await.map(Some),
    }
}

async fn delete(daemon: &Daemon, pattern: &str, yes: bool, output: Output) -> Result<(), CliError> {
    let bucket = find(daemon, pattern).await?;
    may_delete(&bucket, pattern)?;
    confirmed(yes, &format!("this deletes bucket {}", bucket.id))?;
    daemon.call(DeleteBucket { id: bucket.id }).await?;
    output.reply(&(), |()| "Bucket deleted.\n".to_owned())
}

/// A bucket with names beside the typed one may be in use by whoever knows those.
fn may_delete(bucket: &BucketInfo, typed: &str) -> Result<(), CliError> {
    let others: Vec<&str> = bucket.global_aliases.iter().map(String::as_str).filter(|alias| *alias != typed).collect();
    let named_by_id = others.len() == bucket.global_aliases.len();
    let of_key = |key: &BucketKey| {
        let unalias = |name: &String| format!("garage bucket unalias --local {} {name}", key.access_key_id);
        key.bucket_local_aliases.iter().map(unalias).collect::<Vec<_>>()
    };
    let local: Vec<String> = bucket.keys.iter().flat_map(of_key).collect();
    let allowed = if named_by_id { 1 } else { 0 };
    if others.len() > allowed || !local.is_empty() {
        let global = others.iter().map(|name| format!("garage bucket unalias {name}"));
        let commands: Vec<String> = global.chain(local).collect();
        return Err(CliError::Usage(format!(
            "bucket {} has other names, which have to go first: {}. Nothing was changed.",
            bucket.id.short(),
            commands.join("; ")
        )));
    }
    Ok(())
}

/// Without a name no S3 client finds the bucket any more.
fn may_unalias(bucket: &BucketInfo, name: &str) -> Result<(), CliError> {
    let local: usize = bucket.keys.iter().map(|key| key.bucket_local_aliases.len()).sum();
    if bucket.global_aliases.len() + local > 1 {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "{name} is the last name of bucket {}: give it another first with garage bucket alias, or delete it with garage bucket delete. Nothing was changed.",
        bucket.id.short()
    )))
}

fn alias(bucket_id: BucketId, name: String, key: Option<KeyInfo>) -> BucketAlias {
    match key {
        None => BucketAlias { bucket_id, global_alias: Some(name), access_key_id: None, local_alias: None },
        Some(key) => {
            let access_key_id = Some(key.access_key_id.to_string());
            BucketAlias { bucket_id, global_alias: None, access_key_id, local_alias: Some(name) }
        }
    }
}

/// The bucket that a key calls `name`.
fn local_target(key: &KeyInfo, name: &str) -> Result<BucketId, CliError> {
    let bucket = key.buckets.iter().find(|bucket| bucket.local_aliases.iter().any(|alias| alias == name));
    let missing = || CliError::Usage(format!("key {} calls no bucket {name:?}: see garage key info", key.access_key_id));
    bucket.map(|bucket| bucket.id).ok_or_else(missing)
}

async fn permission_change(daemon: &Daemon, args: &PermissionArgs) -> Result<PermissionChange, CliError> {
    let permissions = BucketKeyPerm { read: args.read, write: args.write, owner: args.owner };
    if permissions == BucketKeyPerm::default() {
        return Err(CliError::Usage("say what: --read, --write, --owner, or several of them".to_owned()));
    }
    let bucket_id = find(daemon, &args.bucket).await?.id;
    let key = daemon.call(GetKeyInfo { search: Some(args.key.clone()), ..GetKeyInfo::default() }).await?;
    Ok(PermissionChange { bucket_id, access_key_id: key.access_key_id.to_string(), permissions })
}

/// The limits with those replaced that were given.
fn quotas(present: BucketQuotas, max_size: Option<Limit>, max_objects: Option<Limit>) -> BucketQuotas {
    let replace = |present: Option<u64>, given: Option<Limit>| match given {
        None => present,
        Some(Limit::None) => None,
        Some(Limit::AtMost(limit)) => Some(limit),
    };
    BucketQuotas { max_size: replace(present.max_size, max_size), max_objects: replace(present.max_objects, max_objects) }
}

#[cfg(test)]
mod tests {
    use garage_admin::Date;
    use garage_admin::buckets::{BucketInfo, BucketKey, BucketKeyPerm, BucketQuotas};
    use garage_types::{BucketId, KeyId, Timestamp};

    use super::{may_delete, may_unalias, quotas};
    use crate::args::value::Limit;

    fn bucket(global: &[&str], local: &[&str]) -> BucketInfo {
        let key = BucketKey {
            access_key_id: KeyId::parse("GKaa").unwrap(),
            name: "k".into(),
            permissions: BucketKeyPerm::default(),
            bucket_local_aliases: local.iter().map(|name| (*name).to_owned()).collect(),
        };
        BucketInfo {
            id: BucketId::from_bytes([1; 32]),
            created: Date(Timestamp::ZERO),
            global_aliases: global.iter().map(|name| (*name).to_owned()).collect(),
            website_access: false,
            keys: vec![key],
            objects: 0,
            bytes: 0,
            unfinished_uploads: 0,
            unfinished_multipart_uploads: 0,
            unfinished_multipart_upload_bytes: 0,
            quotas: BucketQuotas::default(),
        }
    }

    #[test]
    fn a_bucket_with_other_names_is_not_deleted() {
        assert!(may_delete(&bucket(&["photos"], &[]), "photos").is_ok());
        assert!(may_delete(&bucket(&["photos"], &[]), "0101").is_ok());
        assert!(may_delete(&bucket(&[], &[]), "0101").is_ok());
        let refused = |bucket: &BucketInfo| may_delete(bucket, "photos").unwrap_err().to_string();
        assert!(refused(&bucket(&["photos", "pics"], &[])).contains("first: garage bucket unalias pics."));
        assert!(may_delete(&bucket(&["photos", "pics"], &[]), "0101").is_err());
        assert!(refused(&bucket(&["photos"], &["mine"])).contains("garage bucket unalias --local GKaa mine"));
    }

    #[test]
    fn the_last_name_of_a_bucket_stays() {
        assert!(may_unalias(&bucket(&["photos", "pics"], &[]), "pics").is_ok());
        assert!(may_unalias(&bucket(&["photos"], &["mine"]), "mine").is_ok());
        assert!(may_unalias(&bucket(&["photos"], &[]), "photos").unwrap_err().to_string().contains("photos is the last name"));
        assert!(may_unalias(&bucket(&[], &["mine"]), "mine").is_err());
    }

    #[test]
    fn a_limit_that_is_not_given_stays() {
        let present = BucketQuotas { max_size: Some(1), max_objects: Some(2) };
        assert_eq!(quotas(present, Some(Limit::None), None), BucketQuotas { max_size: None, max_objects: Some(2) });
        assert_eq!(quotas(present, None, Some(Limit::AtMost(9))), BucketQuotas { max_size: Some(1), max_objects: Some(9) });
    }
}
