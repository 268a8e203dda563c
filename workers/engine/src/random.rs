//! Random numbers of the kernel, fetched for some at once: each costs a system call otherwise.

use tidegate_ring::host;

/// As many as getrandom(2) gives whole.
const POOL_BYTES: usize = 256;
const NUMBER_BYTES: usize = 16;

/// Numbers of 128 bits that nobody can guess. None is given twice, nor kept once it is given.
#[derive(Default)]
pub struct Pool {
    numbers: [[u8; NUMBER_BYTES]; POOL_BYTES / NUMBER_BYTES],
    left: usize,
}

impl Pool {
    /// `None`: the kernel has none.
    pub fn take(&mut self) -> Option<[u8; NUMBER_BYTES]> {
        if self.left == 0 {
            host::fill_random(self.numbers.as_flattened_mut()).ok()?;
            self.left = self.numbers.len();
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.numbers[self.left]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_number_comes_twice() {
        let mut pool = Pool::default();
        let numbers: HashSet<_> = (0..1000).map(|_| pool.take().unwrap()).collect();
        assert_eq!(numbers.len(), 1000);
        assert!(!numbers.contains(&[0; NUMBER_BYTES]));
    }
}
