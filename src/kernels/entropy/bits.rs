/// Writes bits, lowest first.
#[derive(Default)]
pub(super) struct BitWriter {
    pub(super) bytes: Vec<u8>,
    waiting: u64,
    count: u32,
}

impl BitWriter {
    /// Appends the lowest `count` bits, at most 56, of a number that has no others.
    pub(super) fn write(&mut self, bits: u64, count: u32) {
        self.waiting |= bits << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.waiting as u8);
            self.waiting >>= 8;
            self.count -= 8;
        }
    }

    /// The bytes, the last filled up with zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push(self.waiting as u8);
        }
        self.bytes
    }
}

/// Reads bits, lowest first.
pub(super) struct BitReader<'b> {
    bytes: &'b [u8],
    waiting: u64,
    count: u32,
}

impl<'b> BitReader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, waiting: 0, count: 0 }
    }

    /// The next `count` bits, at most 56.
    pub(super) fn read(&mut self, count: u32) -> Option<u64> {
        while self.count < count {
            let (byte, rest) = self.bytes.split_first()?;
            self.waiting |= u64::from(*byte) << self.count;
            self.count += 8;
            self.bytes = rest;
        }
        let bits = self.waiting & ((1 << count) - 1);
        self.waiting >>= count;
        self.count -= count;
        Some(bits)
    }

    /// The bytes of which no bit was read.
    pub(super) fn rest(self) -> &'b [u8] {
        self.bytes
    }
}

/// Appends a number, 7 bits a byte.
pub(crate) fn write_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a number, and gives the bytes behind it.
pub(crate) fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(9) {
        number |= u64::from(byte & 0x7f) << (7 * i);
        if *byte < 0x80 {
            return Some((number, &bytes[i + 1..]));
        }
    }
    None
}
