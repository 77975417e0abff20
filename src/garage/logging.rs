//! The log on its way to standard error.
//!
//! What must stay true: nobody waits for who reads the log. Lines go through a bounded queue to a thread that may wait; what finds no room is
//! counted, and the count is written as soon as there is room. A line that is repeated over and over is written a few times, then
//! counted. No control character of a stranger's reaches a terminal.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;

use crate::escape::{Colours, escaped_line};

/// Lines that wait to be written.
const LINES_MAX: usize = 1024;
/// Of a longer line the rest is left out.
const LINE_BYTES_MAX: usize = 8 << 10;
/// At the end, how long the reader of the log may take for what is left.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How soon room for the last lines is looked for again.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// Lines of one kind written within one [`REPEATS_WINDOW`].
const REPEATS_MAX: u64 = 20;
const REPEATS_WINDOW: Duration = Duration::from_secs(10);

enum Item {
    Line(String),
    /// All before it is written.
    Flush(SyncSender<()>),
}

/// Where log lines go. Clones are the same queue.
#[derive(Clone)]
pub struct LogQueue {
    items: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
    colours: Colours,
}

impl LogQueue {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The operating system starts no thread.
    pub fn start(out: impl Write + Send + 'static, colours: Colours) -> io::Result<Self> {
        let (items, queued) = mpsc::sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&queued, &counted, out))?;
        Ok(LogQueue { items, dropped, colours })
    }

    /// Queues one record; never waits.
    pub fn submit(&self, record: &[u8]) {
        if self.items.try_send(self.line(record)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn line(&self, record: &[u8]) -> Item {
        let record = String::from_utf8_lossy(record);
        let mut line = escaped_line(&record, self.colours);
        if line.len() > LINE_BYTES_MAX {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
            line.push('…');
        }
        line.push('\n');
        Item::Line(line)
    }

    /// Queues the last records, a line each, and waits until they and all before them are written, in all no longer than `patience`: whoever
    /// does not read in time has the rest not read.
    pub fn finish(&self, last: &str, patience: Duration) {
        let due = Instant::now() + patience;
        let (told, written) = mpsc::sync_channel(1);
        let last = last.lines().map(|record| self.line(record.as_bytes()));
        for item in last.chain([Item::Flush(told)]) {
            self.queue_by(item, due);
        }
        if written.recv_timeout(due.saturating_duration_since(Instant::now())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for room in the queue, which may be full of lines that are just being written.
    fn queue_by(&self, mut item: Item, due: Instant) {
        loop {
            item = match self.items.try_send(item) {
                Ok(()) => return,
                Err(TrySendError::Full(item)) if Instant::now() < due => item,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            };
            std::thread::sleep(ROOM_PAUSE);
        }
    }
}

/// Writes what comes, in order. A failure to write counts as a line that was dropped: there is nowhere else to tell it.
fn write_all(queued: &Receiver<Item>, dropped: &AtomicU64, mut out: impl Write) {
    for item in queued {
        match item {
            Item::Line(line) => {
                if out.write_all(line.as_bytes()).is_err() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            Item::Flush(told) => drop(told.send(())),
        }
        let missing = dropped.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let told = format!("WARN garage: {missing} lines of the log were dropped: they were not read in time\n");
            if out.write_all(told.as_bytes()).is_err() {
                dropped.fetch_add(missing, Ordering::Relaxed);
            }
        }
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = QueueWriter<'a>;

    fn make_writer(&'a self) -> QueueWriter<'a> {
        QueueWriter(self)
    }
}

/// Takes each record as one write, as `tracing_subscriber` gives it.
pub struct QueueWriter<'a>(&'a LogQueue);

impl Write for QueueWriter<'_> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.0.submit(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes records to standard error at once: for commands, which end before a queue would be of use.
pub struct EscapingStderr(pub Colours);

impl Write for EscapingStderr {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let line = escaped_line(&String::from_utf8_lossy(record), self.0);
        writeln!(io::stderr().lock(), "{line}")?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// Leaves out lines that one place in the program writes over and over, and says how many.
pub struct Repeats {
    queue: LogQueue,
    began: Instant,
    windows: Mutex<HashMap<Identifier, Window>>,
}

/// The lines of one place within one window of time.
#[derive(Debug, Default)]
struct Window {
    since: Duration,
    seen: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Show,
    /// After so many that were hidden.
    ShowAfter(u64),
    Hide,
}

impl Window {
    /// `now`: since the program began.
    fn note(&mut self, now: Duration) -> Verdict {
        let mut hidden = 0;
        if now >= self.since + REPEATS_WINDOW {
            hidden = self.seen.saturating_sub(REPEATS_MAX);
            (self.since, self.seen) = (now, 0);
        }
        self.seen += 1;
        match (self.seen <= REPEATS_MAX, hidden) {
            (true, 0) => Verdict::Show,
            (true, hidden) => Verdict::ShowAfter(hidden),
            (false, _) => Verdict::Hide,
        }
    }
}

impl Repeats {
    pub fn new(queue: LogQueue) -> Self {
        Repeats { queue, began: Instant::now(), windows: Mutex::default() }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for more than that wants all of it.
        if *metadata.level() > Level::INFO {
            return true;
        }
        let verdict = {
            // Every change under this lock is whole before anything can panic.
            let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            windows.entry(metadata.callsite()).or_default().note(self.began.elapsed())
        };
        if let Verdict::ShowAfter(hidden) = verdict {
            let (level, target) = (metadata.level(), metadata.target());
            self.queue.submit(format!("{level} {target}: {hidden} lines like the next one were left out").as_bytes());
        }
        verdict != Verdict::Hide
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::{LINE_BYTES_MAX, LINES_MAX, LogQueue, REPEATS_MAX, REPEATS_WINDOW, Verdict, Window};
    use crate::escape::Colours;

    /// Waits before each write until it is let go on, as a full pipe does.
    struct Stuck {
        go_on: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.go_on.recv().map_err(|_gone| io::ErrorKind::BrokenPipe)?;
            self.written.send(String::from_utf8_lossy(bytes).into_owned()).map_err(|_gone| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_holds_nobody_up_and_is_told_what_it_missed() {
        let ((let_go, go_on), (written, read)) = (channel(), channel());
        let queue = LogQueue::start(Stuck { go_on, written }, Colours::None).unwrap();
        let lines = 3 * LINES_MAX;
        for n in 0..lines {
            queue.submit(format!("line {n}\n").as_bytes());
        }
        let_go.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), "line 0\n");
        let_go.send(()).unwrap();
        let told = read.recv().unwrap();
        let missing: usize = told.split(' ').nth(2).unwrap().parse().unwrap();
        // The writer may have taken one before the queue was full.
        assert!((lines - LINES_MAX - 1..=lines - LINES_MAX).contains(&missing), "{told}");
        let_go.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), "line 1\n");
    }

    #[test]
    fn the_last_words_come_even_when_the_queue_is_full_and_wait_for_no_reader_that_is_gone() {
        let ((let_go, go_on), (written, read)) = (channel(), channel());
        let queue = LogQueue::start(Stuck { go_on, written }, Colours::None).unwrap();
        for n in 0..2 * LINES_MAX {
            queue.submit(format!("line {n}\n").as_bytes());
        }
        queue.finish("nobody reads", Duration::ZERO);
        for _ in 0..2 * LINES_MAX {
            let_go.send(()).unwrap();
        }
        // Returns as soon as it is written.
        queue.finish("Error: the reason\nand what to do", Duration::from_secs(3600));
        let all: Vec<String> = read.try_iter().collect();
        assert_eq!(all[all.len() - 2..], ["Error: the reason\n", "and what to do\n"]);
        assert!(!all.contains(&"nobody reads\n".to_owned()));
    }

    #[test]
    fn lines_are_bounded_and_hide_no_control_characters() {
        let ((let_go, go_on), (written, read)) = (channel(), channel());
        let queue = LogQueue::start(Stuck { go_on, written }, Colours::None).unwrap();
        queue.submit(b"a\x1b[2Jb\nINFO forged\n");
        queue.submit("é".repeat(LINE_BYTES_MAX).as_bytes());
        let_go.send(()).unwrap();
        assert_eq!(read.recv().unwrap(), "a\\u001b[2Jb\\nINFO forged\n");
        let_go.send(()).unwrap();
        assert!(read.recv().unwrap().len() < LINE_BYTES_MAX + 10);
    }

    #[test]
    fn a_line_that_is_repeated_is_shown_a_few_times_and_then_counted() {
        let mut window = Window::default();
        let shown = (0..100).filter(|_| window.note(Duration::ZERO) == Verdict::Show).count();
        assert_eq!(shown as u64, REPEATS_MAX);
        assert_eq!(window.note(REPEATS_WINDOW), Verdict::ShowAfter(100 - REPEATS_MAX));
        assert_eq!(window.note(REPEATS_WINDOW), Verdict::Show);
    }
}
