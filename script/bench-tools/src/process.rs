//! What /proc says about a process: CPU time, bytes written, resident memory.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Ticks per second in `/proc/PID/stat`: `USER_HZ`, 100 on every Linux that matters here.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Bytes the process made the kernel write to disk; 0 where that is not readable.
    pub bytes_written: u64,
}

impl Usage {
    /// `None` when the process is gone.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may itself hold brackets and spaces; utime is the 12th field after it.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut times = fields.split_whitespace().skip(11).map(|ticks| ticks.parse::<f64>().ok());
        let cpu_seconds = (times.next()?? + times.next()??) / TICKS_PER_SECOND;
        let bytes_written = value(&format!("/proc/{pid}/io"), "write_bytes:").unwrap_or(0);
        Some(Self { cpu_seconds, bytes_written })
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            bytes_written: self.bytes_written.saturating_sub(before.bytes_written),
        }
    }
}

/// The number after a label in a file of labelled lines.
fn value(path: &str, label: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Watches the resident memory of a process, 20 times a second, in a thread of its own.
pub struct PeakMemory {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl PeakMemory {
    pub fn watch(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut peak_kib = 0;
            while !stopped.load(Ordering::Relaxed) {
                peak_kib = peak_kib.max(value(&format!("/proc/{pid}/status"), "VmRSS:").unwrap_or(0));
                thread::sleep(Duration::from_millis(50));
            }
            peak_kib * 1024
        });
        Self { stop, thread }
    }

    /// The highest value seen, in bytes.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watching thread does not panic")
    }
}
