//! A batch on its way into the log: pushed, prepared, committed.

use super::interest::Audience;
use super::writer::LogWriter;
use super::{PREPARED_AT, TAIL_AT};
use crate::error::LogError;
use crate::ring::{Record, Ring};
use crate::sync::Ordering;
use crate::wake;

/// A batch takes at most this part of the ring, so that a reader that has all that is committed is
/// never in its way, and that what was not answered yet is always there to redo.
pub(super) const BATCH_SHARE: u64 = 4;

/// Records on their way into the log.
#[derive(Debug)]
pub struct Batch<'a> {
    writer: &'a mut LogWriter,
    end: u64,
}

impl<'a> Batch<'a> {
    pub(super) fn new(writer: &'a mut LogWriter) -> Batch<'a> {
        let end = writer.tail;
        writer.concern.nobody();
        Batch { writer, end }
    }

    /// Appends a record that concerns everybody, see [`Batch::push_for`].
    ///
    /// # Errors
    /// As [`Batch::push_for`].
    #[inline]
    pub fn push(&mut self, kind: u32, parts: &[&[u8]]) -> Result<u64, LogError> {
        self.push_for(Audience::Everybody, kind, parts)
    }

    /// Appends a record of a `kind` (not 0) whose payload is the parts joined; returns its
    /// position. May wait for readers, for the lag budget at most.
    ///
    /// # Errors
    /// [`LogError::TooLarge`]; [`LogError::BatchFull`]: commit, then push it to the next batch.
    #[inline]
    pub fn push_for(
        &mut self,
        audience: Audience,
        kind: u32,
        parts: &[&[u8]],
    ) -> Result<u64, LogError> {
        let ring = &self.writer.view.ring;
        let payload_bytes = parts.iter().map(|part| part.len()).sum();
        if payload_bytes > ring.payload_bytes_max() {
            let bytes_max = ring.payload_bytes_max();
            return Err(LogError::TooLarge {
                bytes: payload_bytes,
                bytes_max,
            });
        }
        let bytes = Ring::record_bytes(payload_bytes);
        let begin = ring.begin(self.end, bytes);
        let end = begin.wrapping_add(bytes as u64);
        let needed = end.wrapping_sub(self.writer.tail);
        if needed > ring.capacity() / BATCH_SHARE {
            return Err(LogError::BatchFull);
        }
        if needed > self.writer.reserved.wrapping_sub(self.writer.tail) {
            self.writer.reserve(end);
        }
        self.writer
            .view
            .ring
            .put(self.end, begin, kind, parts, payload_bytes);
        self.writer.concern.add(audience, self.writer.view.rows);
        self.end = end;
        Ok(begin)
    }

    /// Position after the last record pushed.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.end == self.writer.tail
    }

    /// Ends the batch: from here on a crash does not lose it, the next writer will redo it.
    #[inline]
    pub fn prepare(self) -> Prepared<'a> {
        self.writer.prepared = self.end;
        // SYNC: pairs with log/writer.rs::LogWriter::open of the writer after.
        self.writer
            .region()
            .word(PREPARED_AT)
            .store(self.end, Ordering::Release);
        Prepared {
            writer: self.writer,
        }
    }
}

/// A batch that is written whole, but not committed: the moment to bring tables up to date.
#[derive(Debug)]
pub struct Prepared<'a> {
    writer: &'a mut LogWriter,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(writer: &'a mut LogWriter) -> Prepared<'a> {
        Prepared { writer }
    }

    /// Shows the records of the batch; returns their number.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if they are not there.
    pub fn records(&self, each: impl FnMut(Record<'_>)) -> Result<usize, LogError> {
        self.writer
            .walk(self.writer.tail, self.writer.prepared, each)
    }

    /// Lets the readers have the batch; `wake` is called with the seat of each one that sleeps and
    /// that it concerns.
    #[inline]
    pub fn commit(self, wake: impl FnMut(u32)) {
        let writer = self.writer;
        if writer.tail == writer.prepared {
            return;
        }
        let begin = std::mem::replace(&mut writer.tail, writer.prepared);
        let region = writer.view.region();
        // SYNC: pairs with log.rs::LogView::tail
        region.word(TAIL_AT).store(writer.tail, Ordering::Release);
        wake::announce();
        writer.wake_readers(begin, wake);
    }
}
