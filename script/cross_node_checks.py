"""What S3 promises when every request of a sequence goes to another node: checks of a healthy cluster of three.

Used by script/cluster-test. Each check works below a prefix of its own.
"""

import hashlib
import random
import threading
import time
import xml.etree.ElementTree as ElementTree

from s3client import S3Error

MIB = 1 << 20
# An answer that asks to try again: another request was at the same upload.
TRY_AGAIN = 409
RETRIES_MAX = 6


def until_taken(chance, send):
    """As SDKs do: where several owners decide, a small write overtaken by another's may be refused for now, and is sent again."""
    for attempt in range(RETRIES_MAX):
        try:
            return send()
        except S3Error as error:
            if error.status != 503 or attempt + 1 == RETRIES_MAX:
                raise
            time.sleep(chance.random() * 0.05 * 2 ** attempt)


class CrossNode:
    def __init__(self, cluster):
        self.cluster = cluster
        self.random = random.Random(2)

    def through(self, index):
        """A fresh client of one node; any number, counted round."""
        return self.cluster.client(self.cluster.nodes[index % len(self.cluster.nodes)])

    def everywhere(self):
        return [self.through(index) for index in range(len(self.cluster.nodes))]

    def read_everywhere(self, key, body):
        for client in self.everywhere():
            found = client.request("GET", key)
            assert found.body == body, f"{key} through {client.host}: {len(found.body)} bytes, not those written"

    def absent_everywhere(self, key):
        for client in self.everywhere():
            assert status(client, "GET", key) == 404, f"{key} is there through {client.host}"

    def a_multipart_upload_goes_on_through_any_node_and_its_completion_is_retried_on_another(self):
        for turn in range(6):
            key = f"cross/multipart/{turn}"
            upload = create_upload(self.through(turn), key)
            parts = [self.random.randbytes(5 * MIB + turn), self.random.randbytes(5 * MIB), self.random.randbytes(7 + turn)]
            # A part that is replaced through another node must not come back.
            upload_part(self.through(turn), key, upload, 2, b"replaced")
            etags = [upload_part(self.through(turn + number), key, upload, number, part) for number, part in enumerate(parts, 1)]
            listed = ElementTree.fromstring(self.through(turn).request("GET", key, {"uploadId": upload}).body)
            sizes = [int(part.find("{*}Size").text) for part in listed.iterfind("{*}Part")]
            assert sizes == [len(part) for part in parts], f"parts listed: {sizes}"
            answers = at_once([lambda client=self.through(turn + step): complete(client, key, upload, etags) for step in (0, 1)])
            assert set(answers) <= {200, TRY_AGAIN}, f"two completions at once answered {answers}"
            # Whatever they answered, one more brings the upload to its end, and yet another changes nothing.
            assert [complete(self.through(turn + step), key, upload, etags) for step in (2, 1)] == [200, 200]
            self.read_everywhere(key, b"".join(parts))
            assert status(self.through(turn + 2), "GET", key, {"uploadId": upload}) == 404

    def an_abort_racing_a_completion_leaves_the_whole_object_or_nothing(self):
        outcomes = set()
        for turn in range(20):
            key = f"cross/race/{turn}"
            upload = create_upload(self.through(turn), key)
            body = self.random.randbytes(4000 * turn + 1)
            etags = [upload_part(self.through(turn + 1), key, upload, 1, body)]
            completed, aborted = at_once([
                lambda client=self.through(turn): complete(client, key, upload, etags),
                lambda client=self.through(turn + 1): status(client, "DELETE", key, {"uploadId": upload}),
            ])
            assert completed in (200, 404, TRY_AGAIN) and aborted in (204, 404, TRY_AGAIN), (completed, aborted)
            assert (completed, aborted) != (200, 204), "both a completion and an abort of one upload succeeded"
            outcomes.add((completed, aborted))
            if completed == 200:
                self.read_everywhere(key, body)
                assert status(self.through(turn + 2), "DELETE", key, {"uploadId": upload}) == 404, "an abort after the completion"
            else:
                self.absent_everywhere(key)
                if aborted != 204:
                    assert status(self.through(turn + 2), "DELETE", key, {"uploadId": upload}) == 204
                assert complete(self.through(turn), key, upload, etags) == 404, "a completion after the abort"
                self.absent_everywhere(key)
        print(f"        completion and abort answered {sorted(outcomes)}")

    def listings_through_another_node_are_true_right_after_each_write(self):
        there = set()
        for turn in range(60):
            key = f"cross/list/{self.random.randrange(20):02}"
            if key in there and self.random.random() < 0.4:
                self.through(turn).request("DELETE", key)
                there.remove(key)
            else:
                self.through(turn).request("PUT", key, body=str(turn).encode())
                there.add(key)
            listed = [entry[0] for entry in self.through(turn + 1).list("cross/list/", page_size=7)]
            assert listed == sorted(there), f"after {turn + 1} writes: listed {listed}, wanted {sorted(there)}"
        upload = create_upload(self.through(0), "cross/list/upload")
        for client in self.everywhere():
            page = ElementTree.fromstring(client.request("GET", query={"uploads": "", "prefix": "cross/list/"}).body)
            assert [found.text for found in page.iterfind("{*}Upload/{*}UploadId")] == [upload]
        self.through(1).request("DELETE", "cross/list/upload", {"uploadId": upload})
        page = ElementTree.fromstring(self.through(2).request("GET", query={"uploads": "", "prefix": "cross/list/"}).body)
        assert page.find("{*}Upload") is None, "an aborted upload is listed"

    def a_copy_made_through_one_node_outlives_its_source_deleted_through_another(self):
        for turn, size in enumerate((0, 3000, MIB, 3 * MIB + 5)):
            source, copy, body = f"cross/source/{turn}", f"cross/copy/{turn}", self.random.randbytes(size)
            self.through(turn).request("PUT", source, body=body)
            self.through(turn + 1).request("PUT", copy, headers={"x-amz-copy-source": f"/{self.cluster.bucket}/{source}"})
            self.through(turn + 2).request("DELETE", source)
            self.absent_everywhere(source)
            self.read_everywhere(copy, body)
            # Onto itself, through yet another node, with other metadata.
            headers = {"x-amz-copy-source": f"/{self.cluster.bucket}/{copy}", "x-amz-metadata-directive": "REPLACE", "x-amz-meta-a": "b"}
            self.through(turn + 2).request("PUT", copy, headers=headers)
            assert self.through(turn).request("HEAD", copy).headers["x-amz-meta-a"] == "b"
            self.read_everywhere(copy, body)

    def readers_of_all_nodes_never_see_an_overwritten_object_go_back_or_missing(self):
        key, done, seen = "cross/overwritten", threading.Event(), [0] * 3
        self.through(0).request("PUT", key, body=b"0")

        def read(index):
            client, last = self.through(index), 0
            while not done.is_set():
                assert [entry[0] for entry in client.list(key)] == [key], f"{client.host} does not list what is always there"
                value = int(client.request("GET", key).body.rstrip(b"."))
                assert value >= last, f"{client.host} read {value} after {last}"
                last = value
                seen[index] += 1

        def write():
            try:
                for value in range(1, 61):
                    # Stored in the row, in one block, in several.
                    self.through(value).request("PUT", key, body=str(value).encode() + b"." * (0, 100_000, 2_500_000)[value % 3])
            finally:
                done.set()

        at_once([write, *(lambda index=index: read(index) for index in range(3))])
        assert min(seen) > 10, f"hardly anything was read: {seen}"
        self.read_everywhere(key, b"60")

    def writers_at_once_on_three_nodes_leave_one_content_that_all_agree_on(self):
        for turn in range(8):
            key, bodies = f"cross/contended/{turn}", [self.random.randbytes(1 + 60_000 * turn) for _ in range(3)]
            at_once([lambda index=index: self.put_until_taken(index, key, bodies[index]) for index in range(3)])
            found = [client.request("GET", key) for client in self.everywhere()]
            assert found[0].body in bodies, "a content that nobody wrote"
            for answer in found:
                assert answer.body == found[0].body, "two nodes give two contents"
                assert answer.headers["etag"] == f'"{hashlib.md5(answer.body).hexdigest()}"'

    def put_until_taken(self, index, key, body):
        until_taken(self.random, lambda: self.through(index).request("PUT", key, body=body))

    def conditional_writes_are_refused_rather_than_guessed(self):
        self.through(0).request("PUT", "cross/conditional", body=b"old")
        for turn, headers in enumerate(({"if-none-match": "*"}, {"if-match": '"' + "0" * 32 + '"'})):
            for key in ("cross/conditional", "cross/conditional-new"):
                assert status(self.through(turn), "PUT", key, headers=headers, body=b"new") == 501
        self.read_everywhere("cross/conditional", b"old")
        self.absent_everywhere("cross/conditional-new")

    def buckets_made_through_one_node_serve_and_vanish_through_the_others(self):
        for turn in range(3):
            clients = [self.through(turn + step) for step in range(3)]
            for client in clients:
                client.bucket = f"cross-{turn}"
            clients[0].request("PUT")
            clients[1].request("PUT", "a", body=b"x")
            assert status(clients[2], "DELETE") == 409, "a bucket that holds an object was deleted"
            clients[0].request("DELETE", "a")
            clients[2].request("DELETE")
            for client in clients:
                assert status(client, "HEAD") == 404 and status(client, "PUT", "a", body=b"x") == 404

    def checks(self):
        return [
            self.a_multipart_upload_goes_on_through_any_node_and_its_completion_is_retried_on_another,
            self.an_abort_racing_a_completion_leaves_the_whole_object_or_nothing,
            self.listings_through_another_node_are_true_right_after_each_write,
            self.a_copy_made_through_one_node_outlives_its_source_deleted_through_another,
            self.readers_of_all_nodes_never_see_an_overwritten_object_go_back_or_missing,
            self.writers_at_once_on_three_nodes_leave_one_content_that_all_agree_on,
            self.conditional_writes_are_refused_rather_than_guessed,
            self.buckets_made_through_one_node_serve_and_vanish_through_the_others,
        ]


def status(client, *arguments, **keywords):
    """The status of the answer, whatever it is."""
    try:
        return client.request(*arguments, **keywords).status
    except S3Error as error:
        return error.status


def create_upload(client, key):
    return ElementTree.fromstring(client.request("POST", key, {"uploads": ""}).body).find("{*}UploadId").text


def upload_part(client, key, upload, number, body):
    return client.request("PUT", key, {"partNumber": number, "uploadId": upload}, body).headers["etag"]


def complete(client, key, upload, etags):
    listing = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in enumerate(etags, 1))
    body = f"<CompleteMultipartUpload>{listing}</CompleteMultipartUpload>".encode()
    return status(client, "POST", key, {"uploadId": upload}, body)


def at_once(calls):
    """Runs the calls in threads of their own; their results in order, or the first exception."""
    results = [None] * len(calls)

    def run(index):
        try:
            results[index] = (calls[index](), None)
        except Exception as error:  # Raised again below, in the thread that can report it.
            results[index] = (None, error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _result, error in results:
        if error is not None:
            raise error
    return [result for result, _error in results]
