//! GetObjectAttributes: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectAttributes.html>
//!
//! As at AWS, parts are only described when they have checksums of their own that were asked for when the upload was created.

use std::sync::Arc;

use garage_http::body::Payload;
use garage_http::dates::http_date;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::get::{Object, ObjectPart};
use garage_types::ObjectKey;

use crate::error::{Code, S3Error};
use crate::headers::header;
use crate::ops::uploads::{PAGE_MAX, checksum_element, write_checksum};
use crate::ops::{Access, BucketCtx, Operation, ReplySize, object_key};
use crate::reply::Reply;

const KNOWN: [&str; 5] = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];

pub struct GetObjectAttributes {
    key: ObjectKey,
    wanted: Vec<String>,
    parts_max: usize,
    marker: u32,
}

impl Operation for GetObjectAttributes {
    const ACCESS: Access = Access::Read;
    const REPLY: ReplySize = ReplySize::Page;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        match head.parameter("versionId") {
            None | Some("null") => {}
            Some(version) => return Err(S3Error::invalid_argument("Invalid version id specified", "versionId", version)),
        }
        let number = |name: &'static str| {
            let text = header(head, name)?;
            let bad = |text: &str| S3Error::invalid_argument("Provided value is not an integer", name, text);
            text.map(|text| text.parse::<u32>().map_err(|_malformed| bad(text))).transpose()
        };
        let parts_max = number("x-amz-max-parts")?.map_or(PAGE_MAX, |number| number as usize).min(PAGE_MAX);
        let marker = number("x-amz-part-number-marker")?.unwrap_or(0);
        Ok(GetObjectAttributes { key: object_key(key)?, wanted: wanted(head)?, parts_max, marker })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let object = ctx.garage().object(ctx.bucket.id, &self.key).await?;
        let parts = if self.wants("ObjectParts") { ctx.garage().object_parts(&object).await? } else { Arc::default() };
        let mut xml = XmlWriter::document();
        xml.root("GetObjectAttributesResponse", S3_NAMESPACE, |xml| self.write(xml, &object, &parts));
        Reply::xml(xml.finish()).header("last-modified", &http_date(object.timestamp))
    }
}

/// `x-amz-object-attributes`: names separated by commas, over one header or several.
fn wanted(head: &RequestHead) -> Result<Vec<String>, S3Error> {
    let mut wanted = Vec::new();
    for value in head.headers.get_all("x-amz-object-attributes") {
        let names = value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        wanted.extend(names.map(str::to_owned));
    }
    match wanted.iter().find(|name| !KNOWN.contains(&name.as_str())) {
        Some(unknown) => Err(S3Error::invalid_argument("Invalid attribute name specified.", "x-amz-object-attributes", unknown)),
        None if wanted.is_empty() => Err(S3Error::new(
            Code::InvalidRequest,
            "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty",
        )),
        None => Ok(wanted),
    }
}

impl GetObjectAttributes {
    fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted == name)
    }

    fn write(&self, xml: &mut XmlWriter, object: &Object, parts: &[ObjectPart]) {
        let meta = &object.meta;
        if self.wants("ETag") {
            xml.text("ETag", &meta.etag);
        }
        if self.wants("Checksum") && meta.checksum.is_some() {
            xml.element("Checksum", |xml| write_checksum(xml, meta.checksum.as_ref()));
        }
        if !parts.is_empty() {
            xml.element("ObjectParts", |xml| self.write_parts(xml, object, parts));
        }
        if self.wants("StorageClass") {
            xml.text("StorageClass", "STANDARD");
        }
        if self.wants("ObjectSize") {
            xml.value("ObjectSize", meta.size);
        }
    }

    fn write_parts(&self, xml: &mut XmlWriter, object: &Object, parts: &[ObjectPart]) {
        xml.value("PartsCount", parts.len());
        let Some(checksum) = &object.meta.checksum else { return };
        let behind: Vec<&ObjectPart> = parts.iter().filter(|part| part.number > self.marker).collect();
        let page = &behind[..behind.len().min(self.parts_max)];
        xml.value("PartNumberMarker", self.marker);
        if let Some(last) = page.last() {
            xml.value("NextPartNumberMarker", last.number);
        }
        xml.value("MaxParts", self.parts_max);
        xml.value("IsTruncated", page.len() < behind.len());
        for part in page {
            xml.element("Part", |xml| {
                xml.value("PartNumber", part.number);
                xml.value("Size", part.bytes.end - part.bytes.start);
                xml.optional(checksum_element(checksum.algorithm), part.checksum.as_deref());
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_http::head::RequestHead;

    use super::wanted;
    use crate::error::Code;

    #[test]
    fn attributes_are_named_and_known() {
        let read = |values: &[&str]| {
            let mut request = hyper::Request::builder().uri("/b/k?attributes").header("host", "localhost");
            for value in values {
                request = request.header("x-amz-object-attributes", *value);
            }
            let head = RequestHead::read(&request.body(()).unwrap().into_parts().0).unwrap();
            wanted(&head).map_err(|error| error.code)
        };
        assert_eq!(read(&["ETag, ObjectSize", "Checksum"]).unwrap(), ["ETag", "ObjectSize", "Checksum"]);
        assert_eq!(read(&["ETag,Colour"]), Err(Code::InvalidArgument));
        assert_eq!(read(&[]), Err(Code::InvalidRequest));
    }
}
