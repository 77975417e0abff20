//! `garage bucket …`

use garage_admin::buckets::{BucketInfo, BucketKeyPerm, BucketListItem, BucketQuotas, DamagedRow};
use jiff::tz::TimeZone;

use super::{both_sizes, day, first_of, heading, moment, row, table};

/// Buckets, oldest first.
pub fn list(buckets: &[BucketListItem], zone: &TimeZone) -> String {
    let mut rows = vec![row(["ID", "Created", "Global aliases", "Local aliases"])];
    let mut buckets: Vec<&BucketListItem> = buckets.iter().collect();
    buckets.sort_by_key(|bucket| (bucket.created, bucket.id));
    rows.extend(buckets.into_iter().map(|bucket| {
        let local: Vec<String> =
            bucket.local_aliases.iter().map(|local| format!("{}:{}", local.access_key_id, local.alias)).collect();
        vec![bucket.id.short(), day(bucket.created, zone), first_of(&bucket.global_aliases), first_of(&local)]
    }));
    table(&rows)
}

/// The damaged rows that a list may be short of; empty when there are none.
pub fn damaged(rows: &[DamagedRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = rows.iter().map(|damaged| vec![damaged.table.clone(), damaged.row.clone()]).collect();
    format!("\nDamaged rows of this node, missing above unless another node has them (see the log):\n{}", table(&rows))
}

/// `RWO`, with a space for what is missing.
pub fn permissions(permissions: BucketKeyPerm) -> String {
    let BucketKeyPerm { read, write, owner } = permissions;
    [(read, 'R'), (write, 'W'), (owner, 'O')].map(|(allowed, letter)| if allowed { letter } else { ' ' }).iter().collect()
}

/// Everything about one bucket.
pub fn info(bucket: &BucketInfo, zone: &TimeZone) -> String {
    let label = if bucket.global_aliases.len() == 1 { "Global alias:" } else { "Global aliases:" };
    let line = |label: &str, value: &str| format!("{label:LABEL_WIDTH$}{value}\n");
    let mut text = heading("BUCKET INFORMATION");
    text += &line("Bucket:", &bucket.id.to_string());
    text += &line("Created:", &moment(bucket.created, zone));
    text += "\n";
    text += &line("Size:", &both_sizes(bucket.bytes));
    text += &line("Objects:", &bucket.objects.to_string());
    text += &unfinished_uploads(bucket);
    text += "\n";
    if bucket.quotas != BucketQuotas::default() {
        text += &line("Quotas:", "enabled");
        text += &quotas(bucket);
        text += "\n";
    }
    text += &line(label, bucket.global_aliases.first().map_or("(none)", String::as_str));
    text.extend(bucket.global_aliases.iter().skip(1).map(|alias| line("", alias)));
    text + "\n" + &heading("KEYS FOR THIS BUCKET") + &keys(bucket)
}

/// Of the labels that most buckets show; longer ones stand for themselves.
const LABEL_WIDTH: usize = 17;

fn unfinished_uploads(bucket: &BucketInfo) -> String {
    if bucket.unfinished_uploads == 0 && bucket.unfinished_multipart_uploads == 0 {
        return String::new();
    }
    let uploads = table(&[
        row(["Unfinished uploads:", &format!("{} multipart uploads", bucket.unfinished_multipart_uploads)]),
        row(["", &format!("{} including regular uploads", bucket.unfinished_uploads)]),
    ]);
    format!("{uploads}Size of unfinished multipart uploads:  {}\n", both_sizes(bucket.unfinished_multipart_upload_bytes))
}

fn quotas(bucket: &BucketInfo) -> String {
    let size = bucket.quotas.max_size.map(|bytes| format!("  maximum size:  {}\n", both_sizes(bytes)));
    let objects = bucket.quotas.max_objects.map(|objects| format!("  maximum number of objects:  {objects}\n"));
    size.unwrap_or_default() + &objects.unwrap_or_default()
}

fn keys(bucket: &BucketInfo) -> String {
    let mut rows = vec![row(["Permissions", "Access key", "", "Local aliases"])];
    rows.extend(bucket.keys.iter().map(|key| {
        let local = key.bucket_local_aliases.join(", ");
        vec![permissions(key.permissions), key.access_key_id.to_string(), key.name.clone(), local]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use garage_admin::Date;
    use garage_admin::buckets::{BucketInfo, BucketKey, BucketKeyPerm, BucketListItem, BucketQuotas, DamagedRow, LocalAlias};
    use garage_types::{BucketId, KeyId, Timestamp};
    use jiff::tz::TimeZone;

    use super::{damaged, info, list};

    fn bucket() -> BucketInfo {
        let key = BucketKey {
            access_key_id: KeyId::parse("GK0123456789abcdef01234567").unwrap(),
            name: "my-key".into(),
            permissions: BucketKeyPerm { read: true, write: true, owner: false },
            bucket_local_aliases: vec!["private-name".into()],
        };
        BucketInfo {
            id: BucketId::from_bytes([0x9f; 32]),
            created: Date(Timestamp::from_millis(1_746_087_630_000)),
            global_aliases: vec!["photos".into(), "pics".into()],
            website_access: false,
            keys: vec![key],
            objects: 7,
            bytes: 12 << 20,
            unfinished_uploads: 0,
            unfinished_multipart_uploads: 0,
            unfinished_multipart_upload_bytes: 0,
            quotas: BucketQuotas { max_size: Some(1 << 30), max_objects: None },
        }
    }

    #[test]
    fn a_bucket_is_shown_with_what_concerns_it_only() {
        let text = info(&bucket(), &TimeZone::UTC);
        let id = "9f".repeat(32);
        for part in [
            "==== BUCKET INFORMATION ====\n",
            &format!("Bucket:          {id}\n"),
            "Created:         2025-05-01 08:20:30.000 +00:00\n\nSize:            12.0 MiB (12.6 MB)\nObjects:         7\n\nQuotas:",
            "  maximum size:  1.0 GiB (1.1 GB)\n",
            "Global aliases:  photos\n                 pics\n\n==== KEYS FOR THIS BUCKET ====\n",
            "Permissions  Access key                          Local aliases\n",
            "RW           GK0123456789abcdef01234567  my-key  private-name\n",
        ] {
            assert!(text.contains(part), "{text}\nshould have\n{part}");
        }
        assert!(!text.contains("Unfinished") && !text.contains("number of objects"));
        let busy = BucketInfo { unfinished_uploads: 2, unfinished_multipart_uploads: 1, ..bucket() };
        assert!(info(&busy, &TimeZone::UTC).contains("1 multipart uploads"));
    }

    #[test]
    fn damaged_rows_are_named_below_a_list() {
        assert_eq!(damaged(&[]), "");
        let row = DamagedRow { table: "bucket_alias".into(), row: "9f/photos".into() };
        let text = damaged(&[row]);
        assert!(text.contains("missing above") && text.ends_with("bucket_alias  9f/photos\n"), "{text}");
    }

    #[test]
    fn buckets_are_listed_by_creation() {
        let item = |byte, created| BucketListItem {
            id: BucketId::from_bytes([byte; 32]),
            created: Date(Timestamp::from_millis(created)),
            global_aliases: vec!["photos".into(), "pics".into()],
            local_aliases: vec![LocalAlias { access_key_id: KeyId::parse("GKaa").unwrap(), alias: "mine".into() }],
        };
        let text = list(&[item(2, 86_400_000), item(1, 0)], &TimeZone::UTC);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ID                Created     Global aliases   Local aliases");
        assert_eq!(lines[1], "0101010101010101  1970-01-01  photos, ... (2)  GKaa:mine");
        assert!(lines[2].starts_with("0202"));
    }
}
