use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use garage_types::random::SeededRandom;
use http_body_util::BodyExt;
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, oneshot, watch};

use super::places::{CROWD, Places};
use super::{BindAddress, BindError, Drained, Peer, RequestBody, ServerLimits, Service, Shared, bind, connection, serve};
use crate::reply::{ReplyBody, ReplyError};

/// Answers by path.
#[derive(Default)]
struct Tester {
    arrived: Notify,
    go_on: Notify,
    calls: AtomicUsize,
    /// Bytes of endless bodies that were asked for.
    asked: Arc<AtomicUsize>,
}

impl Service for Tester {
    fn call(self: Arc<Self>, request: Request<RequestBody>, _peer: Peer) -> BoxFuture<'static, Response<ReplyBody>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        assert!(request.uri().path() != "/panic-at-once", "as asked");
        async move { Response::new(self.reply(request).await) }.boxed()
    }
}

impl Tester {
    async fn reply(&self, request: Request<RequestBody>) -> ReplyBody {
        match request.uri().path() {
            "/hello" => ReplyBody::from("hello"),
            "/panic" => panic!("as asked"),
            "/refuse" => ReplyBody::from("refused"),
            "/echo" => ReplyBody::from(request.into_body().collect().await.expect("a body").to_bytes()),
            "/slow" => {
                self.arrived.notify_one();
                self.go_on.notified().await;
                ReplyBody::from("late")
            }
            "/object" => ReplyBody::sized(1000, stream::iter((0..10).map(|_| Ok(Bytes::from(vec![b'x'; 100]))))),
            "/document" => ReplyBody::from(vec![b'x'; 1 << 20]),
            "/page" => ReplyBody::from(vec![b'x'; 100 << 10]),
            "/small-object" => ReplyBody::sized(100 << 10, stream::iter([Ok(Bytes::from(vec![b'x'; 100 << 10]))])),
            "/short" => ReplyBody::sized(1000, stream::iter([Ok(Bytes::from_static(b"only this"))])),
            "/broken" => {
                ReplyBody::open(stream::iter([Ok(Bytes::from_static(b"begin")), Err(ReplyError::Source("gone".into()))]))
            }
            "/endless" => counted_endless(self.asked.clone()),
            _ => ReplyBody::empty(),
        }
    }
}

/// One connection to a server in memory, whose pipe holds `capacity` bytes in each direction.
struct Wire {
    client: DuplexStream,
    tester: Arc<Tester>,
    close: watch::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

fn wire(capacity: usize, limits: ServerLimits) -> Wire {
    let (client, server) = duplex(capacity);
    wire_over(client, server, limits)
}

fn wire_over(client: DuplexStream, server: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, limits: ServerLimits) -> Wire {
    let tester = Arc::new(Tester::default());
    let shared = Arc::new(Shared::new(tester.clone(), limits, Arc::new(SeededRandom::new(1))));
    let (close, on_close) = watch::channel(());
    let peer = Peer::Unix;
    let place = Places::new(1, 1).take(peer).expect("a free place");
    let done = tokio::spawn(connection::run(server, peer, shared, on_close, place));
    Wire { client, tester, close, done }
}

impl Wire {
    async fn send(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.expect("the pipe is open");
    }

    /// Everything up to the end of the connection.
    async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        self.client.read_to_end(&mut all).await.expect("the pipe ends well");
        String::from_utf8(all).expect("text")
    }
}

/// A body that tells how many of its bytes were asked for.
fn counted_endless(asked: Arc<AtomicUsize>) -> ReplyBody {
    ReplyBody::open(stream::repeat_with(move || {
        asked.fetch_add(65536, Ordering::SeqCst);
        Ok(Bytes::from(vec![0; 65536]))
    }))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n")
}

fn last(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
}

/// What [`Counting`] takes in one write at most.
const SOCKET_BYTES: usize = 1 << 16;

/// Counts writes, and takes all parts of a vectored one as a socket does.
struct Counting {
    io: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let joined: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).take(SOCKET_BYTES).collect();
        self.poll_write(cx, &joined)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_small_reply_leaves_in_one_write() {
    let (client, server) = duplex(1 << 16);
    let writes = Arc::new(AtomicUsize::new(0));
    let mut wire = wire_over(client, Counting { io: server, writes: writes.clone() }, ServerLimits::default());
    wire.send(&last("/hello")).await;
    let reply = wire.rest().await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nhello"), "{reply}");
    assert!(reply.contains("content-length: 5\r\n"), "{reply}");
    assert_eq!(writes.load(Ordering::SeqCst), 1);
}

/// Takes the reply in pieces of so many bytes a second; returns how many came.
async fn taken_at(bytes_a_second: usize) -> usize {
    let (client, server) = duplex(1 << 10);
    let mut wire = wire_over(client, Counting { io: server, writes: Arc::default() }, ServerLimits::default());
    wire.send(&last("/document")).await;
    let (mut taken, mut piece) = (0, vec![0; bytes_a_second]);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut filled = 0;
        while filled < piece.len() {
            match wire.client.read(&mut piece[filled..]).await.expect("the pipe ends well") {
                0 => return taken + filled,
                read => filled += read,
            }
        }
        taken += filled;
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_a_document_drop_by_drop_is_cut_and_who_is_only_slow_is_not() {
    let started = tokio::time::Instant::now();
    assert!(taken_at(100).await < 1 << 20);
    // After a minute and the time for its length, what is in the pipe still comes.
    assert!((124..140).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert!(taken_at(12 << 10).await > 1 << 20);
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_order_with_ids_of_their_own() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send(&[get("/hello"), get("/object"), last("/hello")].concat()).await;
    let replies = wire.rest().await;
    assert_eq!(replies.matches("HTTP/1.1 200").count(), 3);
    assert!(replies.ends_with("hello"));
    let ids: BTreeSet<&str> = replies.lines().filter(|line| line.starts_with("x-amz-request-id: ")).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

#[tokio::test]
async fn a_panic_is_a_500_and_costs_one_request() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send(&[get("/panic"), get("/panic-at-once"), last("/hello")].concat()).await;
    let replies = wire.rest().await;
    assert_eq!(replies.matches("<Code>InternalError</Code>").count(), 2, "{replies}");
    assert!(replies.ends_with("hello"));
    assert!(!replies.contains("as asked"));
}

#[tokio::test]
async fn head_keeps_the_length_of_the_object() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send("HEAD /object HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
    let reply = wire.rest().await;
    assert!(reply.contains("content-length: 1000\r\n") && reply.ends_with("\r\n\r\n"), "{reply}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_seen_to_be_truncated() {
    for (path, sent) in [("/short", "only this"), ("/broken", "begin")] {
        let mut wire = wire(1 << 16, ServerLimits::default());
        wire.send(&get(path)).await;
        let reply = wire.rest().await;
        assert!(reply.starts_with("HTTP/1.1 200") && reply.contains(sent), "{path}: the client gets what there was: {reply}");
        // Neither the announced length nor the last chunk.
        assert!(reply.len() < 900 && !reply.ends_with("0\r\n\r\n"), "{path}: {reply}");
    }
}

#[tokio::test]
async fn expect_100_is_answered_when_the_body_is_first_read() {
    let expecting = |path: &str| {
        format!("PUT {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n")
    };
    let mut reading = wire(1 << 16, ServerLimits::default());
    reading.send(&expecting("/echo")).await;
    let mut interim = [0; 25];
    reading.client.read_exact(&mut interim).await.expect("an interim reply");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    reading.send("ok").await;
    assert!(reading.rest().await.ends_with("ok"));

    let mut refusing = wire(1 << 16, ServerLimits::default());
    refusing.send(&expecting("/refuse")).await;
    let mut reply = vec![0; 15];
    refusing.client.read_exact(&mut reply).await.expect("a reply");
    assert_eq!(reply, b"HTTP/1.1 200 OK");
}

/// botocore takes the reply for one of its own making and hangs on the next, unless the connection ends here.
#[tokio::test]
async fn expect_100_without_a_body_ends_the_connection() {
    for (expect, closes) in [("expect: 100-continue\r\n", true), ("expect: 100-Continue\r\n", true), ("", false)] {
        let mut wire = wire(1 << 16, ServerLimits::default());
        wire.send(&format!("PUT /echo HTTP/1.1\r\nhost: h\r\n{expect}content-length: 0\r\n\r\n{}", last("/hello"))).await;
        let replies = wire.rest().await;
        assert_eq!(replies.contains("hello"), !closes, "{replies}");
        assert_eq!(replies.matches("connection: close\r\n").count(), 1, "{replies}");
    }
}

#[tokio::test]
async fn a_reply_before_the_end_of_the_body_says_that_the_connection_ends() {
    let put = |path: &str, expect: &str| format!("PUT {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n{expect}\r\n");
    for expect in ["", "expect: 100-continue\r\n"] {
        let mut refusing = wire(1 << 16, ServerLimits::default());
        refusing.send(&put("/refuse", expect)).await;
        let reply = refusing.rest().await;
        assert!(reply.contains("connection: close\r\n") && reply.ends_with("refused"), "{reply}");
    }
    let mut reading = wire(1 << 16, ServerLimits::default());
    reading.send(&[put("/echo", ""), "ok".to_owned(), put("/echo", ""), "ok".to_owned(), last("/hello")].concat()).await;
    let replies = reading.rest().await;
    assert_eq!(replies.matches("connection: close\r\n").count(), 1, "only the last, which asked for it: {replies}");
    assert!(replies.ends_with("hello"));
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_number() {
    for head in [format!("x: {}\r\n", "y".repeat(40_000)), "x: y\r\n".repeat(200)] {
        let mut wire = wire(1 << 17, ServerLimits::default());
        wire.send(&format!("GET / HTTP/1.1\r\nhost: h\r\n{head}\r\n")).await;
        let reply = wire.rest().await;
        assert!(reply.starts_with("HTTP/1.1 431"), "{reply}");
        assert_eq!(wire.tester.calls.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_completes_is_given_up() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send("GET / HTTP/1.1\r\nho").await;
    let started = tokio::time::Instant::now();
    assert_eq!(wire.rest().await, "");
    assert_eq!(started.elapsed(), ServerLimits::default().first_head_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_answered_may_rest_longer_before_its_next_request() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send(&get("/hello")).await;
    let started = tokio::time::Instant::now();
    assert!(wire.rest().await.ends_with("hello"));
    assert_eq!(started.elapsed(), ServerLimits::default().head_timeout);
}

/// Connections to one server in memory, whose pipes hold 1 KiB.
struct Crowd {
    tester: Arc<Tester>,
    shared: Arc<Shared<Tester>>,
    places: Places,
    close: watch::Sender<()>,
}

impl Crowd {
    fn new() -> Self {
        let tester = Arc::new(Tester::default());
        let shared = Arc::new(Shared::new(tester.clone(), ServerLimits::default(), Arc::new(SeededRandom::new(1))));
        Crowd { tester, shared, places: Places::new(2 * CROWD, 2 * CROWD), close: watch::channel(()).0 }
    }

    async fn send(&self, request: String) -> DuplexStream {
        let (mut client, server) = duplex(1 << 10);
        let (io, place) = (Counting { io: server, writes: Arc::default() }, self.places.take(Peer::Unix).expect("a free place"));
        tokio::spawn(connection::run(io, Peer::Unix, self.shared.clone(), self.close.subscribe(), place));
        client.write_all(request.as_bytes()).await.expect("the pipe is open");
        client
    }

    /// Asks for this by as many as make a crowd, and reads nothing.
    async fn gather(&self, path: &str) -> Vec<DuplexStream> {
        let mut idle = Vec::new();
        for _ in 0..=CROWD {
            idle.push(self.send(get(path)).await);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        idle
    }

    /// How many bytes are read for each of those who come now and read nothing.
    async fn read_for_each(&self) -> usize {
        let before = self.tester.asked.load(Ordering::SeqCst);
        let mut idle = Vec::new();
        for _ in 0..50 {
            idle.push(self.send(get("/endless")).await);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        (self.tester.asked.load(Ordering::SeqCst) - before) / idle.len()
    }
}

#[tokio::test(start_paused = true)]
async fn among_many_requests_each_buffers_little_and_all_bodies_are_whole() {
    let crowd = Crowd::new();
    let _idle = crowd.gather("/endless").await;
    assert_eq!(crowd.read_for_each().await, 65536, "one piece is there, and the next is not asked for");

    let body: String = ('a'..='z').cycle().take(300_000).collect();
    let echo = format!("PUT /echo HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut all = String::new();
    crowd.send(echo).await.read_to_string(&mut all).await.expect("text");
    assert!(all.ends_with(&format!("\r\n\r\n{body}")), "{} bytes", all.len());
}

#[tokio::test(start_paused = true)]
async fn replies_that_were_given_on_whole_count_until_they_are_taken() {
    for path in ["/page", "/small-object"] {
        let crowd = Crowd::new();
        let idle = crowd.gather(path).await;
        assert_eq!(crowd.read_for_each().await, 65536, "{path}: there is a crowd");
        drop(idle);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(crowd.read_for_each().await > 65536, "{path}: there is none any more");
    }
    let crowd = Crowd::new();
    let mut idle = crowd.gather("/page").await;
    for client in &mut idle {
        client.read_exact(&mut vec![0; 100 << 10]).await.expect("most of the reply");
    }
    for client in &mut idle {
        let _rest = client.read_exact(&mut [0; 64]).await.expect("and its end");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(crowd.read_for_each().await > 65536, "all has been taken");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_given_up() {
    let mut wire = wire(1024, ServerLimits::default());
    wire.send(&get("/endless")).await;
    let started = tokio::time::Instant::now();
    wire.done.await.expect("the connection ends");
    assert_eq!(started.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn on_shutdown_a_request_in_flight_is_finished() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send(&get("/slow")).await;
    wire.tester.arrived.notified().await;
    drop(wire.close);
    wire.tester.go_on.notify_one();
    let mut all = String::new();
    wire.client.read_to_string(&mut all).await.expect("text");
    assert!(all.ends_with("late"), "{all}");
}

#[tokio::test(start_paused = true)]
async fn on_shutdown_idle_connections_close_at_once() {
    let mut wire = wire(1 << 16, ServerLimits::default());
    wire.send(&get("/hello")).await;
    let mut buffer = [0; 4096];
    assert!(wire.client.read(&mut buffer).await.expect("a reply") > 0);
    let started = tokio::time::Instant::now();
    drop(wire.close);
    assert_eq!(wire.client.read(&mut buffer).await.expect("the end"), 0);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

/// A whole server, and what stops it.
struct Running {
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Drained>,
    tester: Arc<Tester>,
}

fn start(listener: super::Listener, limits: ServerLimits) -> Running {
    let (stop, stopped) = oneshot::channel();
    let tester = Arc::new(Tester::default());
    let stopped = stopped.map(|_sent_or_dropped| ());
    let ended = tokio::spawn(serve(listener, tester.clone(), limits, Arc::new(SeededRandom::new(2)), stopped));
    Running { stop, ended, tester }
}

#[tokio::test]
async fn tcp_and_unix_sockets_serve_and_stop() {
    let tcp = bind(&BindAddress::Tcp("127.0.0.1:0".parse().expect("an address"))).await.expect("bound");
    let address = tcp.local_address().expect("TCP has one");
    let running = start(tcp, ServerLimits::default());
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(last("/hello").as_bytes()).await.expect("sent");
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.expect("text");
    assert!(reply.ends_with("hello"));
    drop(client);
    running.stop.send(()).expect("running");
    assert_eq!(running.ended.await.expect("ended"), Drained { cut: 0 });
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_request_that_outlasts_the_shutdown_is_cut() {
    let tcp = bind(&BindAddress::Tcp("127.0.0.1:0".parse().expect("an address"))).await.expect("bound");
    let address = tcp.local_address().expect("TCP has one");
    let running = start(tcp, ServerLimits { drain: Duration::from_millis(20), ..ServerLimits::default() });
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(get("/slow").as_bytes()).await.expect("sent");
    running.tester.arrived.notified().await;
    running.stop.send(()).expect("running");
    assert_eq!(running.ended.await.expect("ended"), Drained { cut: 1 });
}

#[tokio::test]
async fn a_connection_beyond_the_bound_waits_for_its_turn() {
    let tcp = bind(&BindAddress::Tcp("127.0.0.1:0".parse().expect("an address"))).await.expect("bound");
    let address = tcp.local_address().expect("TCP has one");
    let running = start(tcp, ServerLimits { connections_max: 1, ..ServerLimits::default() });
    let mut first = TcpStream::connect(address).await.expect("connected");
    first.write_all(get("/slow").as_bytes()).await.expect("sent");
    running.tester.arrived.notified().await;
    let mut second = TcpStream::connect(address).await.expect("in the kernel's queue");
    second.write_all(last("/hello").as_bytes()).await.expect("sent");
    assert_eq!(running.tester.calls.load(Ordering::SeqCst), 1);
    drop(first);
    running.tester.go_on.notify_one();
    let mut reply = String::new();
    second.read_to_string(&mut reply).await.expect("text");
    assert!(reply.ends_with("hello"));
}

#[tokio::test]
async fn silent_connections_make_way_for_clients_that_speak() {
    let tcp = bind(&BindAddress::Tcp("127.0.0.1:0".parse().expect("an address"))).await.expect("bound");
    let address = tcp.local_address().expect("TCP has one");
    let running = start(tcp, ServerLimits { connections_max: 8, connections_of_one_address_max: 8, ..ServerLimits::default() });
    let mut speaking = TcpStream::connect(address).await.expect("connected");
    speaking.write_all(last("/slow").as_bytes()).await.expect("sent");
    running.tester.arrived.notified().await;
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(last("/hello").as_bytes()).await.expect("sent");
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.expect("text");
    assert!(reply.ends_with("hello"), "{reply}");
    assert_eq!(silent[0].read(&mut [0; 1]).await.expect("an orderly end"), 0, "the first of the silent ones has made way");
    running.tester.go_on.notify_one();
    let mut reply = String::new();
    speaking.read_to_string(&mut reply).await.expect("text");
    assert!(reply.ends_with("late"), "whoever is being answered stays: {reply}");
}

#[test]
fn connections_leave_half_of_the_descriptors_and_no_address_has_all() {
    let limits = |descriptors| {
        let limits = ServerLimits::default().for_descriptors(descriptors);
        (limits.connections_max, limits.connections_of_one_address_max)
    };
    assert_eq!(limits(1024), (512, 448));
    assert_eq!(limits(1 << 20), (4096, 3584));
    assert_eq!(limits(2), (1, 1));
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let tcp = bind(&BindAddress::Tcp("127.0.0.1:0".parse().expect("an address"))).await.expect("bound");
    let address = tcp.local_address().expect("TCP has one");
    let running = start(tcp, ServerLimits::default());
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(b"PUT /refuse HTTP/1.1\r\nhost: h\r\ncontent-length: 16777216\r\n\r\n").await.expect("sent");
    client.write_all(&vec![0; 16 << 20]).await.expect("the server goes on reading");
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.expect("no reset");
    assert!(reply.ends_with("refused"));
    drop(running.stop);
}

/// A path in the system's folder for temporary files, of this process alone.
fn socket_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("garage-http-{}-{name}.sock", std::process::id()))
}

#[tokio::test]
async fn a_unix_socket_has_its_mode_and_goes_with_its_server() {
    use std::os::unix::fs::PermissionsExt;
    let path = socket_path("serve");
    let listener = bind(&BindAddress::Unix { path: path.clone(), mode: 0o222 }).await.expect("bound");
    assert_eq!(std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o222);
    let second = bind(&BindAddress::Unix { path: path.clone(), mode: 0o222 }).await;
    assert!(matches!(second, Err(BindError::InUse { .. })), "{second:?}");
    let running = start(listener, ServerLimits::default());
    let mut client = UnixStream::connect(&path).await.expect("connected");
    client.write_all(last("/hello").as_bytes()).await.expect("sent");
    let mut reply = String::new();
    client.read_to_string(&mut reply).await.expect("text");
    assert!(reply.ends_with("hello"));
    drop(client);
    running.stop.send(()).expect("running");
    assert_eq!(running.ended.await.expect("ended"), Drained { cut: 0 });
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_plain_file_is_not() {
    let path = socket_path("stale");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists());
    drop(bind(&BindAddress::Unix { path: path.clone(), mode: 0o600 }).await.expect("replaced"));
    std::fs::write(&path, "mine").expect("written");
    let refused = bind(&BindAddress::Unix { path: path.clone(), mode: 0o600 }).await;
    assert!(matches!(refused, Err(BindError::NotASocket { .. })), "{refused:?}");
    std::fs::remove_file(&path).expect("removed");
}
