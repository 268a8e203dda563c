//! Where blobs are put: places of so many sizes, each used again for another blob of its size.

use super::{BLOB_ALIGN, BLOB_BYTES_MAX};

/// Up to here there is a size for each multiple of [`BLOB_ALIGN`], then one for each power of two.
const FINE_BYTES_MAX: usize = 512;
const FINE: usize = FINE_BYTES_MAX / BLOB_ALIGN;
const COARSE: usize = (BLOB_BYTES_MAX.next_power_of_two() / FINE_BYTES_MAX).ilog2() as usize;

/// Which parts of a run of bytes hold a blob; known to the writer alone.
#[derive(Debug)]
pub(super) struct Places {
    /// Nothing was ever put from here on.
    fresh: usize,
    end: usize,
    /// Free places of each size.
    free: Vec<Vec<usize>>,
}

impl Places {
    pub fn new(start: usize, end: usize) -> Places {
        Places {
            fresh: start,
            end,
            free: vec![Vec::new(); FINE + COARSE],
        }
    }

    /// A place for so many bytes. `None`: too many, or there is no room.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let (size, room) = size_for(bytes)?;
        if let Some(place) = self.free[size].pop() {
            return Some(place);
        }
        let place = self.fresh;
        if room > self.end - place {
            return None;
        }
        self.fresh += room;
        Some(place)
    }

    /// Gives a place back that was taken for so many bytes.
    pub fn give(&mut self, place: usize, bytes: usize) {
        if let Some((size, _)) = size_for(bytes) {
            self.free[size].push(place);
        }
    }
}

/// The number of a size, and how many bytes it has.
fn size_for(bytes: usize) -> Option<(usize, usize)> {
    if bytes <= FINE_BYTES_MAX {
        let units = bytes.div_ceil(BLOB_ALIGN).max(1);
        return Some((units - 1, units * BLOB_ALIGN));
    }
    if bytes > BLOB_BYTES_MAX {
        return None;
    }
    let room = bytes.next_power_of_two();
    let coarse = (room / FINE_BYTES_MAX).ilog2() as usize;
    Some((FINE + coarse - 1, room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_a_size_that_holds_it() {
        for bytes in (0..2048).chain([BLOB_BYTES_MAX - 1, BLOB_BYTES_MAX]) {
            let (size, room) = size_for(bytes).unwrap();
            assert!(room >= bytes && size < FINE + COARSE, "{bytes}");
            assert!(room > BLOB_BYTES_MAX || size_for(room) == Some((size, room)));
        }
        assert_eq!(size_for(BLOB_BYTES_MAX + 1), None);
    }

    #[test]
    fn places_do_not_overlap_and_are_used_again() {
        let mut places = Places::new(4096, 4096 + 1024);
        let first = places.take(100).unwrap();
        let second = places.take(100).unwrap();
        assert_eq!((first, second), (4096, 4096 + 104));
        places.give(first, 100);
        assert_eq!(places.take(98), Some(first));
        assert_eq!(places.take(2000), None);
        assert_eq!(places.take(1024 - 200), None);
        assert!(places.take(512).is_some());
    }
}
