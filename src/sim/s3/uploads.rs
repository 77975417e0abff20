//! What S3 clients do with uploads in parts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use garage_types::Random;
use hyper::{Method, StatusCode};

use super::client::{NoReply, Request};
use super::work::{Turn, Work, path_of};
use crate::history::{Begun, WRITE_HEADER};
use crate::workload::until_ended;

/// An upload as the clients know it.
pub struct Upload {
    id: String,
    key: &'static str,
    write: u64,
    /// Acknowledged parts.
    parts: BTreeMap<u32, StoredPart>,
    /// How often somebody sent all of each part.
    attempts: BTreeMap<u32, u32>,
    /// The completion, once anyone tried: always of the same part.
    completion: Option<Completion>,
    /// How often somebody tried to end it.
    endings: u32,
    ended: bool,
}

#[derive(Clone)]
struct StoredPart {
    etag: String,
    body: Bytes,
}

#[derive(Clone)]
struct Completion {
    begun: Begun,
    number: u32,
    etag: String,
}

impl Upload {
    fn query(&self) -> String {
        format!("uploadId={}", self.id)
    }
}

impl Work {
    pub(super) async fn create_upload(&self, turn: &Turn<'_>, key: &'static str) {
        let write = self.world.history.new_write(Bytes::new());
        let request = Request::new(Method::POST, path_of(key)).query("uploads=".to_owned());
        let what = format!("create upload to {key} = {write}");
        let Ok(reply) = self.send(turn, &what, request.header(WRITE_HEADER, write.to_string())).await else { return };
        let Some(id) = reply.element("UploadId").map(str::to_owned) else { return };
        let upload = Upload {
            id,
            key,
            write,
            parts: BTreeMap::new(),
            attempts: BTreeMap::new(),
            completion: None,
            endings: 0,
            ended: false,
        };
        self.uploads.lock().unwrap().push(Arc::new(Mutex::new(upload)));
    }

    fn some_upload(&self) -> Option<Arc<Mutex<Upload>>> {
        let uploads = self.uploads.lock().unwrap();
        let open: Vec<_> = uploads.iter().filter(|upload| !upload.lock().unwrap().ended).collect();
        if open.is_empty() { None } else { Some(open[self.world.random.below(open.len() as u64) as usize].clone()) }
    }

    pub(super) async fn upload_part(&self, turn: &Turn<'_>) {
        let Some(upload) = self.some_upload() else { return };
        let (number, body) = (1 + self.world.random.below(2) as u32, self.new_body());
        let cut = self.some_cut(&body);
        let (what, request) = {
            let mut upload = upload.lock().unwrap();
            if cut.is_none() {
                *upload.attempts.entry(number).or_default() += 1;
            }
            let query = format!("partNumber={number}&{}", upload.query());
            let request = Request::new(Method::PUT, path_of(upload.key)).query(query).body(body.clone()).cut(cut);
            (format!("part {number} of {} ({} bytes, cut {cut:?})", upload.write, body.len()), request)
        };
        let Ok(reply) = self.send(turn, &what, request).await else { return };
        if !reply.status.is_success() {
            return;
        }
        if cut.is_some() {
            return self.violation(turn, &format!("{what}: a body that broke off was acknowledged"));
        }
        match reply.header("etag") {
            Some(etag) => {
                let etag = etag.to_owned();
                upload.lock().unwrap().parts.insert(number, StoredPart { etag, body });
            }
            None => self.violation(turn, &format!("{what}: acknowledged without an ETag")),
        }
    }

    pub(super) async fn complete(&self, turn: &Turn<'_>) {
        let Some(upload) = self.some_upload() else { return };
        for attempt in 1..=super::work::ATTEMPTS_MAX {
            let Some((what, completion, request)) = self.begin_completion(&upload) else { return };
            self.world.writer.send_replace(turn.machine.number);
            let result = self.send(turn, &what, request).await;
            let sure = {
                // Nobody else ended it, and nobody replaced the part.
                let upload = upload.lock().unwrap();
                upload.endings == 1 && upload.attempts.get(&completion.number) == Some(&1)
            };
            match result {
                Ok(reply) if reply.status.is_success() => {
                    upload.lock().unwrap().ended = true;
                    return self.world.history.acknowledged(completion.begun);
                }
                Ok(reply) => {
                    match reply.element("Code") {
                        Some("InvalidPart") if sure => self.violation(turn, &format!("{what}: an acknowledged part is lost")),
                        Some("NoSuchUpload") if sure => self.violation(turn, &format!("{what}: the upload is lost")),
                        _ => {}
                    }
                    self.world.history.left_in_doubt();
                    if reply.status != StatusCode::SERVICE_UNAVAILABLE {
                        return;
                    }
                }
                Err(NoReply::Broken) => return self.world.history.left_in_doubt(),
                Err(NoReply::Refused) => return,
            }
            self.back_off(attempt).await;
        }
    }

    fn begin_completion(&self, upload: &Mutex<Upload>) -> Option<(String, Completion, Request)> {
        let history = &self.world.history;
        let mut upload = upload.lock().unwrap();
        if upload.ended {
            return None;
        }
        if upload.completion.is_none() {
            let (number, part) = upload.parts.iter().next_back().map(|(number, part)| (*number, part.clone()))?;
            history.set_body(upload.write, part.body);
            let begun = history.begin(upload.key, Some(upload.write));
            upload.completion = Some(Completion { begun, number, etag: part.etag });
        }
        let completion = upload.completion.clone()?;
        upload.endings += 1;
        let part = format!("<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>", completion.number, completion.etag);
        let document = format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>");
        let request = Request::new(Method::POST, path_of(upload.key)).query(upload.query()).body(document.into());
        Some((format!("complete {} to {}", upload.write, upload.key), completion, request))
    }

    pub(super) async fn abort(&self, turn: &Turn<'_>) {
        if let Some(upload) = self.some_upload() {
            let _has_ended = self.abort_one(turn, &upload).await;
        }
    }

    /// Returns whether the upload has ended now.
    async fn abort_one(&self, turn: &Turn<'_>, upload: &Mutex<Upload>) -> bool {
        let (what, request) = {
            let mut upload = upload.lock().unwrap();
            upload.endings += 1;
            let request = Request::new(Method::DELETE, path_of(upload.key)).query(upload.query());
            (format!("abort {}", upload.write), request)
        };
        match self.send(turn, &what, request).await.map(|reply| reply.status) {
            Ok(StatusCode::NO_CONTENT) => {
                let mut upload = upload.lock().unwrap();
                upload.ended = true;
                self.world.history.aborted(upload.write);
                true
            }
            Ok(status) => status == StatusCode::NOT_FOUND,
            Err(_no_reply) => false,
        }
    }

    /// Aborts every upload that is not known to have ended.
    pub(super) async fn abort_all(&self, turn: &Turn<'_>) {
        let uploads = self.uploads.lock().unwrap().clone();
        for upload in uploads {
            let has_ended = upload.lock().unwrap().ended || until_ended(|| self.abort_one(turn, &upload).boxed()).await;
            if !has_ended {
                self.violation(turn, "an upload cannot be ended although all machines run");
            }
        }
    }
}
