//! `garage key …`

use garage_admin::Date;
use garage_admin::keys::{KeyInfo, KeyListItem};
use jiff::tz::TimeZone;

use super::bucket::permissions;
use super::{day, first_of, heading, moment, row, table};

/// Whether an expiration has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Valid,
    Expired,
}

fn validity(expired: bool) -> Validity {
    if expired { Validity::Expired } else { Validity::Valid }
}

fn expiration(date: Option<Date>, zone: &TimeZone) -> String {
    date.map_or_else(|| "never".to_owned(), |date| moment(date, zone))
}

/// Keys, oldest first.
pub fn list(keys: &[KeyListItem], zone: &TimeZone) -> String {
    let mut rows = vec![row(["ID", "Created", "Name", "Expiration"])];
    let mut keys: Vec<&KeyListItem> = keys.iter().collect();
    keys.sort_by_key(|key| (key.created, &key.id));
    rows.extend(keys.into_iter().map(|key| {
        let expires = match validity(key.expired) {
            Validity::Expired => "expired".to_owned(),
            Validity::Valid => expiration(key.expiration, zone),
        };
        vec![key.id.to_string(), key.created.map_or_else(String::new, |date| day(date, zone)), key.name.clone(), expires]
    }));
    table(&rows)
}

/// Everything about one key; its secret only when the reply has it.
pub fn info(key: &KeyInfo, zone: &TimeZone) -> String {
    let validity = match validity(key.expired) {
        Validity::Valid => "valid",
        Validity::Expired => "EXPIRED",
    };
    let rows = [
        row(["Key ID:", key.access_key_id.as_str()]),
        row(["Key name:", &key.name]),
        row(["Secret key:", key.secret_access_key.as_ref().map_or("(redacted)", |secret| secret.expose())]),
        row(["Created:", &key.created.map_or_else(String::new, |date| moment(date, zone))]),
        row(["Validity:", validity]),
        row(["Expiration:", &expiration(key.expiration, zone)]),
        row([""]),
        row(["Can create buckets:", &key.permissions.create_bucket.to_string()]),
    ];
    let mut buckets = vec![row(["Permissions", "ID", "Global aliases", "Local aliases"])];
    buckets.extend(key.buckets.iter().map(|bucket| {
        let local = bucket.local_aliases.join(", ");
        vec![permissions(bucket.permissions), bucket.id.short(), first_of(&bucket.global_aliases), local]
    }));
    heading("ACCESS KEY INFORMATION") + &table(&rows) + "\n" + &heading("BUCKETS FOR THIS KEY") + &table(&buckets)
}

#[cfg(test)]
mod tests {
    use garage_admin::Date;
    use garage_admin::buckets::BucketKeyPerm;
    use garage_admin::keys::{KeyBucket, KeyInfo, KeyListItem, KeyPerm};
    use garage_types::{BucketId, KeyId, Secret, Timestamp};
    use jiff::tz::TimeZone;

    use super::{info, list};

    #[test]
    fn the_secret_is_shown_only_when_the_reply_has_it() {
        let bucket = KeyBucket {
            id: BucketId::from_bytes([0x9f; 32]),
            global_aliases: vec!["photos".into()],
            local_aliases: vec!["private-name".into()],
            permissions: BucketKeyPerm { read: true, write: true, owner: true },
        };
        let key = KeyInfo {
            access_key_id: KeyId::parse("GK0123456789abcdef01234567").unwrap(),
            name: "my-key".into(),
            secret_access_key: None,
            created: Some(Date(Timestamp::from_millis(0))),
            expiration: None,
            expired: false,
            permissions: KeyPerm::default(),
            buckets: vec![bucket],
        };
        let text = info(&key, &TimeZone::UTC);
        for part in [
            "Key ID:              GK0123456789abcdef01234567\n",
            "Secret key:          (redacted)\n",
            "Validity:            valid\nExpiration:          never\n\nCan create buckets:  false\n\n==== BUCKETS FOR THIS KEY ====\n",
            "RWO          9f9f9f9f9f9f9f9f  photos          private-name\n",
        ] {
            assert!(text.contains(part), "{text}\nshould have\n{part}");
        }
        let shown = KeyInfo { secret_access_key: Some(Secret::new("s3cr3t")), ..key };
        assert!(info(&shown, &TimeZone::UTC).contains("Secret key:          s3cr3t\n"));
    }

    #[test]
    fn expired_keys_are_marked_in_the_list() {
        let item = |id: &str, expired: bool| KeyListItem {
            id: KeyId::parse(id).unwrap(),
            name: "web".into(),
            created: Some(Date(Timestamp::from_millis(0))),
            expiration: expired.then_some(Date(Timestamp::from_millis(1))),
            expired,
        };
        assert_eq!(
            list(&[item("GKaa", false), item("GKbb", true)], &TimeZone::UTC),
            "ID    Created     Name  Expiration\nGKaa  1970-01-01  web   never\nGKbb  1970-01-01  web   expired\n"
        );
    }
}
