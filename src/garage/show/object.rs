//! `garage bucket inspect-object`

use garage_admin::objects::{InspectedObject, ObjectVersion};
use jiff::tz::TimeZone;

use super::{both_sizes, heading, moment, row, table};

/// Everything stored under one key, a part of the text each.
pub fn object(object: &InspectedObject, zone: &TimeZone) -> String {
    object.versions.iter().map(|version| one(object, version, zone)).collect::<Vec<String>>().join("\n")
}

fn one(object: &InspectedObject, version: &ObjectVersion, zone: &TimeZone) -> String {
    let title = if version.uploading { "UPLOAD" } else { "OBJECT VERSION" };
    let id = if version.uploading { "Upload ID:" } else { "Version ID:" };
    let mut rows = vec![
        row(["Bucket ID:", &object.bucket_id.to_string()]),
        row(["Key:", &object.key]),
        row([id, &version.uuid]),
        row(["Timestamp:", &moment(version.timestamp, zone)]),
    ];
    if let Some(size) = version.size {
        rows.push(row(["Size:", &both_sizes(size)]));
        rows.push(row(["Size (exact):", &size.to_string()]));
    }
    if !version.blocks.is_empty() {
        rows.push(row(["Number of blocks:", &version.blocks.len().to_string()]));
    }
    if let Some(etag) = &version.etag {
        rows.push(row(["Etag:", etag]));
    }
    let facts = [
        ("Encrypted:", version.encrypted),
        ("Uploading:", version.uploading),
        ("Aborted:", version.aborted),
        ("Delete marker:", version.delete_marker),
        ("Inline data:", version.inline),
    ];
    rows.extend(facts.map(|(label, fact)| row([label, &fact.to_string()])));
    let mut text = heading(title) + &table(&rows);
    if !version.headers.is_empty() {
        let headers: Vec<Vec<String>> = version.headers.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
        text += "\n";
        text += &table(&headers);
    }
    if !version.blocks.is_empty() {
        text += "\n";
        text += &blocks(version);
    }
    text
}

fn blocks(version: &ObjectVersion) -> String {
    let mut rows = vec![row(["Part#", "Offset", "Block hash", "Size"])];
    rows.extend(version.blocks.iter().map(|block| {
        vec![format!("{:5}", block.part_number), block.offset.to_string(), block.hash.to_string(), block.size.to_string()]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use garage_admin::Date;
    use garage_admin::objects::{InspectedObject, ObjectBlock, ObjectVersion};
    use garage_types::{BlockHash, BucketId, Timestamp};
    use jiff::tz::TimeZone;

    use super::object;

    #[test]
    fn a_version_is_shown_with_its_headers_and_blocks() {
        let hash = BlockHash::of(b"x");
        let version = ObjectVersion {
            uuid: "77aa".to_owned(),
            timestamp: Date(Timestamp::from_millis(1_746_087_630_000)),
            encrypted: false,
            uploading: false,
            aborted: false,
            delete_marker: false,
            inline: false,
            size: Some(3 << 20),
            etag: Some("d41d".to_owned()),
            headers: vec![("content-type".to_owned(), "application/octet-stream".to_owned())],
            blocks: vec![ObjectBlock { part_number: 1, offset: 0, hash, size: 1 << 20 }],
        };
        let gone =
            ObjectVersion { delete_marker: true, size: None, etag: None, headers: vec![], blocks: vec![], ..version.clone() };
        let inspected = InspectedObject {
            bucket_id: BucketId::from_bytes([1; 32]),
            key: "docs/a.bin".to_owned(),
            versions: vec![version, gone],
        };
        let text = object(&inspected, &TimeZone::UTC);
        let block = format!("Part#  Offset  {:64}  Size\n    1  0       {hash}  1048576\n", "Block hash");
        for part in [
            "==== OBJECT VERSION ====\n",
            "Key:               docs/a.bin\n",
            "Size (exact):      3145728\n",
            "Number of blocks:  1\n",
            "Inline data:       false\n\ncontent-type  application/octet-stream\n\n",
            &block,
            "\n==== OBJECT VERSION ====\n",
            "Delete marker:  true\n",
        ] {
            assert!(text.contains(part), "{text}\nshould have\n{part}");
        }
        assert_eq!(text.matches("Etag").count(), 1);
    }
}
