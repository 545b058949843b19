//! Random damage to files.

/// xorshift64*: the same damage on every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n.max(1) as u128) >> 64) as usize
    }
}

/// One small damage to `bytes[from..to]`, which may change the length.
pub(crate) fn damage(random: &mut Random, bytes: &mut Vec<u8>, from: usize, to: usize) {
    let at = from + random.below(to - from);
    let length = 1 + random.below((to - at).min(16));
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes.insert(at, random.next() as u8),
        3 => drop(bytes.drain(at..at + length)),
        4 => {
            let copy = bytes[at..at + length].to_vec();
            bytes.splice(at..at, copy);
        }
        5 => bytes[at..at + length].fill([0, 0xff, 0x7f, 0x80][random.below(4)]),
        6 => bytes.truncate(at),
        // a number of the text becomes another, which leaves the rest well-formed
        _ => {
            let digits: Vec<usize> = (from..to).filter(|i| bytes[*i].is_ascii_digit()).collect();
            if !digits.is_empty() {
                bytes[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
            }
        }
    }
}
