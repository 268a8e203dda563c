//! Statistics: named counters, gauges and histograms of every process, readable without asking any.
//!
//! ```text
//! 4096  folds        odd while a dead process's row is added to the supervisor's
//! 4224  schema       text, one line a metric: kind, name, help; then zeros, room for more lines
//!       rows         each: identity (128 bytes), then the values in the schema's order, then room
//!
//! identity  0 pid   8 start   16 role   24 slot   32 generation   40 heartbeat_ns   48 state
//! value     counter, gauge: one word; histogram: 64 buckets, sum, count
//! ```
//!
//! A row has one writer, the process that claimed it. A row without a pid is free.

mod row;

pub use row::{Index, Row};

use crate::error::SegmentError;
use crate::layout::{self, HEADER_BYTES, Kind as SegmentKind, LINE, Owner};
use crate::region::{Region, WORD};
use crate::sync::{Ordering, fence};

const FOLDS_AT: usize = HEADER_BYTES;
const SCHEMA_AT: usize = HEADER_BYTES + LINE;

const PID_AT: usize = 0;
const START_AT: usize = 8;
const ROLE_AT: usize = 16;
const SLOT_AT: usize = 24;
const GENERATION_AT: usize = 32;
const HEARTBEAT_AT: usize = 40;
const STATE_AT: usize = 48;
const VALUES_AT: usize = LINE;

/// Buckets of a histogram: four an octave, so that each is at most a quarter wider than the one
/// before; values from 131,072 on share the last.
pub const BUCKETS: usize = 64;
const HISTOGRAM_WORDS: usize = BUCKETS + 2;
const SUM: usize = BUCKETS;
const COUNT: usize = BUCKETS + 1;

/// Bounds of a segment: rows for 4,096 slots and their successors, a schema of some hundred lines.
pub const ROWS_MAX: u64 = 16_384;
pub const SCHEMA_BYTES_MAX: u64 = 1 << 20;

/// Room for metrics of later code (see [`extend`]): some hundred lines, and in each row 256 words.
const SPARE_SCHEMA_BYTES: usize = 16 << 10;
const SPARE_ROW_BYTES: usize = 2 << 10;

/// A snapshot is tried for again while the supervisor folds a row, which takes microseconds.
const SNAPSHOTS_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, also over the deaths of processes.
    Counter,
    /// Goes up and down; a process's own ends with it.
    Gauge,
    Histogram,
}

impl Kind {
    const ALL: [(Kind, &'static str); 3] = [
        (Kind::Counter, "counter"),
        (Kind::Gauge, "gauge"),
        (Kind::Histogram, "histogram"),
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|known| known.1 == name)
            .map(|known| known.0)
    }

    fn words(self) -> usize {
        if self == Kind::Histogram {
            HISTOGRAM_WORDS
        } else {
            1
        }
    }
}

/// One line of the schema, as code declares it.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub kind: Kind,
    /// Name in Prometheus form, unit last, labels included: `closes_total{reason="slow"}`.
    pub name: &'static str,
    pub help: &'static str,
}

/// One line of the schema, as a segment carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaLine {
    pub kind: Kind,
    pub name: String,
    pub help: String,
}

impl From<&Metric> for SchemaLine {
    fn from(metric: &Metric) -> Self {
        Self {
            kind: metric.kind,
            name: metric.name.into(),
            help: metric.help.into(),
        }
    }
}

/// Who writes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Role {
    Supervisor = 1,
    Publisher = 2,
    Worker = 3,
    Api = 4,
}

/// The state word of a row's process.
pub mod state {
    pub const STARTING: u64 = 0;
    pub const SERVING: u64 = 1;
    pub const DRAINING: u64 = 2;
}

/// Bytes of a segment with these metrics and so many rows.
///
/// # Errors
/// [`SegmentError::Parameter`] beyond [`ROWS_MAX`] and [`SCHEMA_BYTES_MAX`].
pub fn segment_bytes(schema: &[SchemaLine], rows: u64) -> Result<usize, SegmentError> {
    Ok(spacious(schema, rows)?.segment_bytes())
}

/// The layout of a new segment.
fn spacious(schema: &[SchemaLine], rows: u64) -> Result<Layout, SegmentError> {
    let schema_bytes = schema_text(schema).len() + SPARE_SCHEMA_BYTES;
    let row_bytes = row_bytes(schema) + SPARE_ROW_BYTES;
    Layout::new(schema_bytes as u64, rows, row_bytes as u64)
}

/// Writes the schema into a zeroed region of [`segment_bytes`] bytes; all rows are free.
///
/// # Errors
/// As [`segment_bytes`]; also for a region of another size and a name or help of several lines.
pub fn format(
    region: &Region,
    schema: &[SchemaLine],
    rows: u64,
    owner: Owner,
) -> Result<(), SegmentError> {
    let text = schema_text(schema);
    if parse_schema(&text).as_deref() != Some(schema) {
        return Err(SegmentError::Parameter {
            name: "metrics",
            value: schema.len() as u64,
            rule: "names have no blanks outside of labels, and neither they nor help line ends",
        });
    }
    let layout = spacious(schema, rows)?;
    if region.len() != layout.segment_bytes() {
        return Err(SegmentError::Size {
            said: layout.segment_bytes() as u64,
            found: region.len() as u64,
        });
    }
    let parameters = [layout.schema_bytes, layout.rows, layout.row_bytes].map(|each| each as u64);
    layout::format(
        region,
        SegmentKind::Statistics,
        owner,
        &parameters,
        |region| write_schema(region, 0, &text),
    );
    Ok(())
}

/// Adds the metrics of `wanted` that the schema lacks, behind those there are; with `only_check`
/// only says whether that can be. Who attached before does not see them; rows have them as zeros.
/// For the owner of the segment alone.
///
/// # Errors
/// As [`Stats::attach`]; [`SegmentError::Parameter`] where the room is used up, or a metric is of
/// another kind by now.
pub fn extend(
    region: &Region,
    wanted: &[SchemaLine],
    only_check: bool,
) -> Result<(), SegmentError> {
    let stats = Stats::attach(region.clone())?;
    let refused = |rule| SegmentError::Parameter {
        name: "metrics",
        value: wanted.len() as u64,
        rule,
    };
    let mut schema = stats.schema.clone();
    for line in wanted {
        match schema.iter().find(|known| known.name == line.name) {
            Some(known) if known.kind == line.kind => {}
            Some(_) => return Err(refused("none may be of another kind than before")),
            None => schema.push(line.clone()),
        }
    }
    let text = schema_text(&schema);
    if parse_schema(&text).as_deref() != Some(&schema) {
        return Err(refused("names and help must be without line ends and tabs"));
    }
    if text.len() > stats.layout.schema_bytes || row_bytes(&schema) > stats.layout.row_bytes {
        return Err(refused("new ones must fit the room that was left for them"));
    }
    if !only_check {
        write_schema(region, schema_text(&stats.schema).len(), &text);
    }
    Ok(())
}

/// Writes `text`, of which the first `there` bytes are there already.
///
/// What follows them comes first and the word in which they end comes last: who reads up to a zero
/// byte finds the text of before, or all of the new one.
fn write_schema(region: &Region, there: usize, text: &str) {
    let from = there / WORD;
    let words: Vec<u64> = text.as_bytes()[from * WORD..]
        .chunks(WORD)
        .map(|chunk| {
            let mut word = [0; WORD];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect();
    for (index, word) in words.iter().enumerate().rev() {
        // SYNC: pairs with stats.rs::read_schema
        region
            .word(SCHEMA_AT + (from + index) * WORD)
            .store(*word, Ordering::Release);
    }
}

/// The text of the schema, up to a zero byte or the end of its place.
fn read_schema(region: &Region, bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes);
    for at in (0..bytes).step_by(WORD) {
        // SYNC: pairs with stats.rs::write_schema
        let word = region.word(SCHEMA_AT + at).load(Ordering::Acquire);
        text.extend(word.to_ne_bytes());
        if text.ends_with(&[0]) {
            break;
        }
    }
    let end = text.iter().position(|byte| *byte == 0);
    text.truncate(end.unwrap_or(bytes));
    text
}

fn row_bytes(schema: &[SchemaLine]) -> usize {
    let words: usize = schema.iter().map(|line| line.kind.words()).sum();
    (VALUES_AT + words * WORD).next_multiple_of(LINE)
}

fn schema_text(schema: &[SchemaLine]) -> String {
    schema
        .iter()
        .fold(String::new(), |text, SchemaLine { kind, name, help }| {
            text + kind.name() + "\t" + name + "\t" + help + "\n"
        })
}

fn parse_schema(text: &str) -> Option<Vec<SchemaLine>> {
    if text.contains('\0') {
        return None;
    }
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let kind = Kind::from_name(fields.next()?)?;
        let (name, help) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        fields
            .next()
            .is_none()
            .then_some(SchemaLine { kind, name, help })
    };
    text.split_terminator('\n').map(line).collect()
}

#[derive(Clone, Copy, Debug)]
struct Layout {
    schema_bytes: usize,
    rows: usize,
    row_bytes: usize,
}

impl Layout {
    fn new(schema_bytes: u64, rows: u64, row_bytes: u64) -> Result<Self, SegmentError> {
        let within = |name, value, max, rule| {
            if value > max {
                Err(SegmentError::Parameter { name, value, rule })
            } else {
                Ok(())
            }
        };
        within("rows", rows, ROWS_MAX, "at most 16384 rows")?;
        within(
            "schema_bytes",
            schema_bytes,
            SCHEMA_BYTES_MAX,
            "at most 1 MiB of schema",
        )?;
        within(
            "row_bytes",
            row_bytes,
            SCHEMA_BYTES_MAX,
            "at most 1 MiB a row",
        )?;
        let [schema_bytes, rows, row_bytes] =
            [schema_bytes, rows, row_bytes].map(|bounded| bounded as usize);
        Ok(Self {
            schema_bytes,
            rows,
            row_bytes,
        })
    }

    fn row_at(&self, row: usize) -> usize {
        (SCHEMA_AT + self.schema_bytes).next_multiple_of(LINE) + row * self.row_bytes
    }

    fn segment_bytes(&self) -> usize {
        layout::whole_pages(self.row_at(self.rows))
    }
}

/// The statistics as any process reads them.
#[derive(Debug)]
pub struct Stats {
    region: Region,
    layout: Layout,
    schema: Vec<SchemaLine>,
    /// Word offset of each schema line's value in a row.
    places: Vec<usize>,
}

/// Who a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u64,
    pub start: u64,
    pub role: u64,
    pub slot: u64,
    pub generation: u64,
    pub heartbeat_ns: u64,
    pub state: u64,
}

/// A row as it was at one moment; values in the order of the schema.
#[derive(Clone, Debug)]
pub struct RowSnapshot {
    pub row: usize,
    pub identity: Identity,
    pub values: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Histogram {
        buckets: Vec<u64>,
        sum: u64,
        count: u64,
    },
}

impl Stats {
    /// # Errors
    /// [`SegmentError`] where the region holds no statistics of this version.
    pub fn attach(region: Region) -> Result<Self, SegmentError> {
        let header = layout::attach(&region, SegmentKind::Statistics)?;
        let [schema_bytes, rows, row_size, ..] = header.parameters;
        let layout = Layout::new(schema_bytes, rows, row_size)?;
        if layout.segment_bytes() != region.len() {
            return Err(SegmentError::Size {
                said: layout.segment_bytes() as u64,
                found: region.len() as u64,
            });
        }
        let schema = String::from_utf8(read_schema(&region, layout.schema_bytes))
            .ok()
            .and_then(|text| parse_schema(&text))
            .filter(|schema| row_bytes(schema) <= layout.row_bytes)
            .ok_or(SegmentError::Parameter {
                name: "schema",
                value: schema_bytes,
                rule: "it must be lines of kind, name and help that fit a row",
            })?;
        let places = schema
            .iter()
            .scan(VALUES_AT, |next, line| {
                let at = *next;
                *next += line.kind.words() * WORD;
                Some(at)
            })
            .collect();
        Ok(Self {
            region,
            layout,
            schema,
            places,
        })
    }

    #[must_use]
    pub fn schema(&self) -> &[SchemaLine] {
        &self.schema
    }

    /// Every claimed row. A process that dies and is folded meanwhile is in it once.
    #[must_use]
    pub fn rows(&self) -> Vec<RowSnapshot> {
        let mut rows = Vec::new();
        for _ in 0..SNAPSHOTS_MAX {
            // SYNC: pairs with stats/row.rs::Row::fold (both stores of `folds`)
            let before = self.region.word(FOLDS_AT).load(Ordering::Acquire);
            rows = (0..self.layout.rows)
                .filter_map(|row| self.snapshot(row))
                .collect();
            // SYNC: pairs with the release fence in stats/row.rs::Row::fold
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.region.load(FOLDS_AT) == before {
                return rows;
            }
            std::thread::yield_now();
        }
        // A supervisor that died while folding leaves `folds` odd; its instance ends with it.
        rows
    }

    /// Last heartbeat of a row, CLOCK_MONOTONIC; 0 for a free row and for none yet.
    #[must_use]
    pub fn heartbeat_ns(&self, row: usize) -> Option<u64> {
        (row < self.layout.rows).then(|| self.region.load(self.layout.row_at(row) + HEARTBEAT_AT))
    }

    fn snapshot(&self, row: usize) -> Option<RowSnapshot> {
        let at = self.layout.row_at(row);
        let word = |offset: usize| self.region.load(at + offset);
        // SYNC: pairs with stats/row.rs::Row::claim
        let pid = self.region.word(at + PID_AT).load(Ordering::Acquire);
        if pid == 0 {
            return None;
        }
        let identity = Identity {
            pid,
            start: word(START_AT),
            role: word(ROLE_AT),
            slot: word(SLOT_AT),
            generation: word(GENERATION_AT),
            heartbeat_ns: word(HEARTBEAT_AT),
            state: word(STATE_AT),
        };
        let value = |(line, place): (&SchemaLine, &usize)| match line.kind {
            Kind::Counter | Kind::Gauge => Value::Number(word(*place)),
            Kind::Histogram => Value::Histogram {
                buckets: (0..BUCKETS)
                    .map(|bucket| word(place + bucket * WORD))
                    .collect(),
                sum: word(place + SUM * WORD),
                count: word(place + COUNT * WORD),
            },
        };
        let values = self.schema.iter().zip(&self.places).map(value).collect();
        Some(RowSnapshot {
            row,
            identity,
            values,
        })
    }
}

/// The bucket that counts `value`: exact below 4, then four an octave.
#[must_use]
pub fn bucket_of(value: u64) -> usize {
    if value < 4 {
        return value as usize;
    }
    let octave = value.ilog2() as usize;
    let quarter = (value >> (octave - 2)) as usize & 3;
    (4 * (octave - 1) + quarter).min(BUCKETS - 1)
}

/// The largest value of a bucket; the last bucket has none.
#[must_use]
pub fn bucket_bound(bucket: usize) -> Option<u64> {
    if bucket + 1 >= BUCKETS {
        return None;
    }
    if bucket < 4 {
        return Some(bucket as u64);
    }
    let (octave, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    Some((1 << octave) + ((quarter + 1) << (octave - 2)) - 1)
}
