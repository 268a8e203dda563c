//! The log against a bare ring: `cargo run --release -p tidegate-ring --example ring_bench`.
//!
//! Two processes on two cores, 64-byte records, all checks of the log on. The bare ring is the best
//! that a single producer and a single consumer can do that trust each other for ever: fixed slots
//! of 64 bytes, cached indexes, plain copies, nothing checked, nobody woken. It is measured
//! publishing one record at a time, as such rings do, and in batches of 32, as the log does. All
//! have the same number of bytes. Runs alternate, so that what else the machine does hits all; they
//! are many and short (a few ms), so that most are not hit; the ratios are medians over the runs.
//!
//! Options: `--json`, `--runs N`, `--records N`, `--samples N`, `--capacity BYTES`.

#![allow(clippy::disallowed_types)]

use std::hint::{black_box, spin_loop};
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use tidegate_ring::layout::Owner;
use tidegate_ring::log::{self, LogReader, LogWriter};
use tidegate_ring::region::Region;
use tidegate_ring::sync::{AtomicU64, Ordering};

const BATCH: usize = 32;
const WORDS: usize = 8;
const BYTES: usize = WORDS * 8;
type Payload = [u64; WORDS];

/// A sample of latency is taken so often: the reader has long gone back to spinning.
const PACE_NS: u64 = 1500;

fn main() {
    let options = Options::parse();
    let measure = |_| Round {
        rate: [
            rate::<Log>(&options),
            rate::<Bare<1>>(&options),
            rate::<Bare<BATCH>>(&options),
        ],
        p50: [
            median_latency_ns::<Log>(&options),
            median_latency_ns::<Bare<1>>(&options),
        ],
    };
    let rounds: Vec<Round> = (0..options.runs).map(measure).collect();
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value).collect());
    let medians = Round {
        rate: [of(|r| r.rate[0]), of(|r| r.rate[1]), of(|r| r.rate[2])],
        p50: [of(|r| r.p50[0]), of(|r| r.p50[1])],
    };
    let one_way = of(|r| r.rate[0] / r.rate[1]);
    let one_way_batched = of(|r| r.rate[0] / r.rate[2]);
    let latency = of(|r| r.p50[0] / r.p50[1]);
    if options.json {
        let ([log, bare, batched], [log_p50, bare_p50]) = (medians.rate, medians.p50);
        println!(
            "{{\"log_records_s\": {log:.0}, \"bare_records_s\": {bare:.0}, \
             \"bare_batched_records_s\": {batched:.0}, \"one_way_ratio\": {one_way:.3}, \
             \"one_way_batched_ratio\": {one_way_batched:.3}, \"log_p50_ns\": {log_p50:.0}, \
             \"bare_p50_ns\": {bare_p50:.0}, \"latency_ratio\": {latency:.3}}}"
        );
        return;
    }
    println!("median {}", medians.line());
    println!("one way, log to bare ring:                  {one_way:.3}");
    println!("one way, log to bare ring that batches too: {one_way_batched:.3}");
    println!("publish to read, log to bare ring:          {latency:.3}");
}

/// Log, bare ring one by one, bare ring in batches; log, bare ring.
struct Round {
    rate: [f64; 3],
    p50: [f64; 2],
}

impl Round {
    fn line(&self) -> String {
        let [log, bare, batched] = self.rate.map(|rate| rate / 1e6);
        let [log_p50, bare_p50] = self.p50;
        format!(
            "log {log:6.1} M/s, bare {bare:6.1} M/s, in batches {batched:6.1} M/s; \
             p50 log {log_p50:4.0} ns, bare {bare_p50:4.0} ns"
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Options {
    json: bool,
    runs: usize,
    records: usize,
    samples: usize,
    capacity: usize,
}

impl Options {
    fn parse() -> Options {
        let mut options = Options {
            json: false,
            runs: 45,
            records: 200_000,
            samples: 2_000,
            capacity: 1 << 20,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let place = match argument.as_str() {
                "--json" => {
                    options.json = true;
                    continue;
                }
                "--runs" => &mut options.runs,
                "--records" => &mut options.records,
                "--samples" => &mut options.samples,
                "--capacity" => &mut options.capacity,
                _ => usage(&argument),
            };
            match arguments.next().and_then(|value| value.parse().ok()) {
                Some(value) => *place = value,
                None => usage(&argument),
            }
        }
        options.records = options.records.next_multiple_of(BATCH);
        options
    }
}

fn usage(argument: &str) -> ! {
    eprintln!("{argument}? options: --json, --runs N, --records N, --samples N, --capacity BYTES");
    std::process::exit(2);
}

/// A one-way channel between two processes over one region.
trait Contestant: Sized {
    fn segment_bytes(capacity: usize) -> usize;
    fn format(region: &Region, capacity: usize);
    fn sender(region: Region, capacity: usize) -> Self;
    fn receiver(region: Region, capacity: usize) -> Self;
    /// Sends a batch; waits for room.
    fn send(&mut self, payloads: &[Payload]);
    /// Shows what is there now, returns its number.
    fn receive(&mut self, each: impl FnMut(Payload)) -> usize;
}

enum Log {
    Sender(LogWriter),
    Receiver(LogReader),
}

impl Contestant for Log {
    fn segment_bytes(capacity: usize) -> usize {
        log::segment_bytes(capacity as u64, 1, 1)
    }

    fn format(region: &Region, capacity: usize) {
        let owner = Owner {
            generation: 1,
            pid: 1,
            start: 1,
        };
        log::format(region, capacity as u64, 1, 1, 0, owner).expect("format");
    }

    fn sender(region: Region, _: usize) -> Log {
        let mut writer = LogWriter::open(region, Duration::from_secs(10)).expect("writer");
        writer.attach_reader(0).expect("seat");
        Log::Sender(writer)
    }

    fn receiver(region: Region, _: usize) -> Log {
        Log::Receiver(LogReader::join(region, 0).expect("reader"))
    }

    #[inline]
    fn send(&mut self, payloads: &[Payload]) {
        let Log::Sender(writer) = self else {
            unreachable!()
        };
        let mut batch = writer.batch().expect("batch");
        for payload in payloads {
            let bytes: &[u8; BYTES] = payload.as_bytes();
            batch.push(1, &[bytes]).expect("push");
        }
        batch.prepare().commit(|_| panic!("the reader spins"));
    }

    #[inline]
    fn receive(&mut self, mut each: impl FnMut(Payload)) -> usize {
        let Log::Receiver(reader) = self else {
            unreachable!()
        };
        let shown = reader.read(usize::MAX, |record| {
            each(Payload::from_bytes(record.payload))
        });
        shown.expect("the reader is never lapped")
    }
}

/// A bare ring: tail and head a line each, then the slots. It publishes `STEP` records at a time.
struct Bare<const STEP: usize> {
    region: Region,
    mask: usize,
    own: usize,
    /// The other side's index, as last seen.
    other: usize,
}

const TAIL_AT: usize = 0;
const HEAD_AT: usize = 128;
const SLOTS_AT: usize = 256;

impl<const STEP: usize> Bare<STEP> {
    fn open(region: Region, capacity: usize) -> Self {
        Bare {
            region,
            mask: capacity / BYTES - 1,
            own: 0,
            other: 0,
        }
    }

    #[inline]
    fn index(&self, at: usize) -> &AtomicU64 {
        self.region.word(at)
    }

    #[inline]
    fn slot(&self, index: usize) -> *mut Payload {
        let offset = SLOTS_AT + (index & self.mask) * BYTES;
        // SAFETY: the region has `mask + 1` slots, the index was masked.
        unsafe { self.region.word(0).as_ptr().byte_add(offset).cast() }
    }
}

impl<const STEP: usize> Contestant for Bare<STEP> {
    fn segment_bytes(capacity: usize) -> usize {
        SLOTS_AT + capacity
    }

    fn format(_: &Region, _: usize) {}

    fn sender(region: Region, capacity: usize) -> Self {
        Bare::open(region, capacity)
    }

    fn receiver(region: Region, capacity: usize) -> Self {
        Bare::open(region, capacity)
    }

    #[inline]
    fn send(&mut self, payloads: &[Payload]) {
        for step in payloads.chunks(STEP) {
            while self.own + step.len() - self.other > self.mask + 1 {
                self.other = self.index(HEAD_AT).load(Ordering::Acquire) as usize;
                spin_loop();
            }
            for (at, payload) in step.iter().enumerate() {
                // SAFETY: the receiver is done with this slot, and looks once the tail has moved.
                unsafe { self.slot(self.own + at).write(*payload) };
            }
            self.own += step.len();
            self.index(TAIL_AT)
                .store(self.own as u64, Ordering::Release);
        }
    }

    #[inline]
    fn receive(&mut self, mut each: impl FnMut(Payload)) -> usize {
        if self.own == self.other {
            self.other = self.index(TAIL_AT).load(Ordering::Acquire) as usize;
        }
        let step = self.own..self.other.min(self.own + STEP);
        for index in step.clone() {
            // SAFETY: the sender is done with this slot, and comes back once the head has moved.
            each(unsafe { self.slot(index).read() });
        }
        if !step.is_empty() {
            self.own = step.end;
            self.index(HEAD_AT)
                .store(self.own as u64, Ordering::Release);
        }
        step.len()
    }
}

trait AsBytes {
    fn as_bytes(&self) -> &[u8; BYTES];
    fn from_bytes(bytes: &[u8]) -> Self;
}

impl AsBytes for Payload {
    #[inline]
    fn as_bytes(&self) -> &[u8; BYTES] {
        // SAFETY: plain words are as many plain bytes.
        unsafe { &*std::ptr::from_ref(self).cast() }
    }

    #[inline]
    fn from_bytes(bytes: &[u8]) -> Payload {
        let bytes: &[u8; BYTES] = bytes.try_into().expect("a whole record");
        std::array::from_fn(|index| u64::from_ne_bytes(bytes.as_chunks().0[index]))
    }
}

/// What the two processes tell each other beside the contest.
mod control {
    pub const READY: usize = 0;
    pub const RESULT: usize = 128;
    pub const DONE: usize = 256;
    pub const BYTES: usize = 4096;
}

/// Records per second from the first send until the receiver has all.
fn rate<C: Contestant>(options: &Options) -> f64 {
    let records = options.records;
    let mut seconds = 0.0;
    let sum = duel::<C>(
        options,
        |sender| {
            let mut payloads = [[0; WORDS]; BATCH];
            for first in (0..records as u64).step_by(BATCH) {
                for (number, payload) in (first..).zip(&mut payloads) {
                    payload[0] = number;
                    payload[WORDS - 1] = number ^ 1;
                }
                sender.send(black_box(&payloads));
            }
        },
        |receiver| {
            let (mut count, mut sum) = (0, 0u64);
            while count < records {
                let shown = receiver.receive(|payload| {
                    for word in payload {
                        sum = sum.wrapping_add(word);
                    }
                });
                count += shown;
                if shown == 0 {
                    spin_loop();
                }
            }
            sum
        },
        &mut seconds,
    );
    let count = records as u64;
    // The sum of all numbers, twice: `number ^ 1` only swaps neighbours.
    assert_eq!(
        sum,
        count * (count - 1),
        "every record has to arrive, intact"
    );
    records as f64 / seconds
}

/// Median of the nanoseconds from just before a send until the record was read.
fn median_latency_ns<C: Contestant>(options: &Options) -> f64 {
    let samples = options.samples;
    let ticks = duel::<C>(
        options,
        |sender| {
            let mut due = ticks();
            let pace = (PACE_NS as f64 * ticks_per_ns()) as u64;
            for number in 0..samples as u64 {
                due += pace;
                while ticks() < due {
                    spin_loop();
                }
                let now = ticks();
                sender.send(&[[now, number, 0, 0, 0, 0, 0, number]]);
            }
        },
        |receiver| {
            let mut taken = Vec::with_capacity(samples);
            while taken.len() < samples {
                receiver.receive(|payload| {
                    black_box(&payload);
                    taken.push(ticks().saturating_sub(payload[0]));
                });
            }
            taken.sort_unstable();
            taken[samples / 2]
        },
        &mut 0.0,
    );
    ticks as f64 / ticks_per_ns()
}

/// Runs a sender on core 0 and a receiver in a process of its own on core 1; returns the answer of
/// the receiver, and leaves in `seconds` how long it took.
fn duel<C: Contestant>(
    options: &Options,
    send: impl FnOnce(&mut C),
    receive: impl FnOnce(&mut C) -> u64,
    seconds: &mut f64,
) -> u64 {
    let region = shared(C::segment_bytes(options.capacity).next_multiple_of(4096));
    let words = shared(control::BYTES);
    C::format(&region, options.capacity);
    ticks_per_ns();
    // SAFETY: this program has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", Error::last_os_error());
    if child == 0 {
        // SAFETY: plain system call; the child must not outlive a killed parent.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        pin(1);
        let mut receiver = C::receiver(region, options.capacity);
        words.word(control::READY).store(1, Ordering::Release);
        let answer = receive(&mut receiver);
        words.word(control::RESULT).store(answer, Ordering::Relaxed);
        words.word(control::DONE).store(1, Ordering::Release);
        // SAFETY: ends the child without running what belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    pin(0);
    while words.word(control::READY).load(Ordering::Acquire) == 0 {
        spin_loop();
    }
    let mut sender = C::sender(region, options.capacity);
    let began = Instant::now();
    send(&mut sender);
    while words.word(control::DONE).load(Ordering::Acquire) == 0 {
        spin_loop();
    }
    *seconds = began.elapsed().as_secs_f64();
    // SAFETY: our own child; nothing is wanted but its end.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    words.word(control::RESULT).load(Ordering::Relaxed)
}

fn shared(bytes: usize) -> Region {
    // SAFETY: a valid C string.
    let fd = unsafe { libc::memfd_create(c"ring_bench".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain system call; allocates every page, so that no run pays for page faults.
    let error = unsafe { libc::posix_fallocate(fd.as_raw_fd(), 0, bytes as libc::off_t) };
    assert_eq!(
        error,
        0,
        "posix_fallocate: {}",
        Error::from_raw_os_error(error)
    );
    let region = Region::map(fd.as_fd()).expect("map");
    for word in region.words(0, bytes / 8).iter().step_by(512) {
        word.store(0, Ordering::Relaxed);
    }
    region
}

fn pin(core: usize) {
    // SAFETY: an all-zero set is valid, and `CPU_SET` stays within it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(
        result,
        0,
        "two cores are needed: {}",
        Error::last_os_error()
    );
}

/// The cycle counter: one clock for both cores (constant_tsc), far cheaper than clock_gettime(2).
#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn ticks_per_ns() -> f64 {
    static MEASURED: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *MEASURED.get_or_init(|| {
        let (began, first) = (Instant::now(), ticks());
        while began.elapsed() < Duration::from_millis(50) {
            spin_loop();
        }
        (ticks() - first) as f64 / began.elapsed().as_nanos() as f64
    })
}
