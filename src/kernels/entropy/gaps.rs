use super::bits::{BitReader, BitWriter};
use super::{EntropyError, decode, encode};

/// How many positions lie between the kept ones: what is left of sorted positions once each is told by its distance to the one
/// before (Han et al., "Deep Compression", section 2).
///
/// A gap below 4 is a symbol; of any other the symbol tells how many bits it has and the two below the highest, and the rest
/// follow as they are, behind the stream of all symbols, lowest bits first, up to a whole byte.
#[derive(Default)]
pub(crate) struct Gaps {
    symbols: Vec<u8>,
    rest: BitWriter,
    rest_bits: u64,
    /// The position behind the last one.
    next: u64,
}

impl Gaps {
    /// Appends a position, which must be larger than those before.
    pub(crate) fn push(&mut self, position: u64) {
        let gap = position - self.next;
        self.next = position + 1;
        if gap < 4 {
            self.symbols.push(gap as u8);
            return;
        }
        let low_bits = gap.ilog2() - 2;
        self.symbols.push((4 * low_bits) as u8 + (gap >> low_bits) as u8);
        self.rest.write(gap & ((1 << low_bits) - 1), low_bits);
        self.rest_bits += u64::from(low_bits);
    }

    /// Appends the stream to `out`, and gives the least bits of its symbols, each by itself, and the rest.
    pub(crate) fn write(self, out: &mut Vec<u8>) -> f64 {
        let bound = encode(&self.symbols, out);
        out.extend(self.rest.finish());
        bound + self.rest_bits as f64
    }
}

/// Reads `count` positions below `end`, and gives the bytes behind their stream.
///
/// # Errors
/// When the bytes are no stream of so many positions.
pub(crate) fn read_gaps(
    bytes: &[u8],
    count: usize,
    end: u64,
    mut each: impl FnMut(u64),
) -> Result<&[u8], EntropyError> {
    let mut symbols = Vec::new();
    symbols.try_reserve_exact(count).map_err(|_| EntropyError("has more positions than there is memory"))?;
    symbols.resize(count, 0);
    let mut rest = BitReader::new(decode(bytes, &mut symbols)?);
    let mut next = 0u64;
    for symbol in symbols {
        let gap = if symbol < 4 {
            u64::from(symbol)
        } else {
            let low_bits = u32::from(symbol / 4) - 1;
            if low_bits > 48 {
                return Err(EntropyError("has a gap beyond any matrix"));
            }
            let low = rest.read(low_bits).ok_or(EntropyError("ends within its gaps"))?;
            (4 + u64::from(symbol % 4)) << low_bits | low
        };
        let position = next + gap;
        if position >= end {
            return Err(EntropyError("has a position beyond its matrix"));
        }
        each(position);
        next = position + 1;
    }
    Ok(rest.rest())
}
