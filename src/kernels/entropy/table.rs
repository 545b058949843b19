use super::EntropyError;
use super::bits::{BitReader, BitWriter};

/// Bits of the sum of all frequencies, fewest and most.
const BITS: std::ops::RangeInclusive<u8> = 8..=14;

/// Fractional bits of a logarithm.
const FRACTION: u32 = 16;

/// Frequencies of symbols, with a sum of a power of two; at least two are not 0.
pub(super) struct Table {
    bits: u8,
    frequencies: [u32; 256],
}

/// What a symbol takes of the states: its frequency, and where its range starts.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) frequency: u16,
    pub(super) start: u16,
}

/// From a state to a symbol.
pub(super) struct Decoder {
    pub(super) bits: u8,
    /// The symbol of every value below `2^bits`.
    pub(super) symbols: Vec<u8>,
    pub(super) shares: [Share; 256],
}

impl Table {
    /// The table under which symbols of these counts, at least two of which are not 0, and the table itself take the fewest
    /// bits.
    pub(super) fn of(counts: &[u64; 256]) -> Self {
        let of_bits = |bits| {
            let table = Self::normalized(counts, bits)?;
            let bits_of = |symbol: usize| {
                let cost = (u64::from(bits) << FRACTION) - log2(table.frequencies[symbol]);
                u128::from(counts[symbol]) * u128::from(cost)
            };
            let used = (0..256).filter(|symbol| counts[*symbol] > 0);
            let cost = used.map(bits_of).sum::<u128>();
            Some((cost + (u128::from(table.cost(table.order())) << FRACTION), table))
        };
        let best = BITS.filter_map(of_bits).min_by_key(|(cost, _)| *cost);
        // 256 symbols fit the smallest sum
        best.map_or(Self { bits: *BITS.end(), frequencies: [1 << 6; 256] }, |(_, table)| table)
    }

    /// Frequencies next to the counts' share of `2^bits`, none of a symbol that occurs 0.
    fn normalized(counts: &[u64; 256], bits: u8) -> Option<Self> {
        let sum = 1u32 << bits;
        let all: u64 = counts.iter().sum();
        let share = |n: u64| ((u128::from(n) << bits) / u128::from(all.max(1))) as u32;
        let mut frequencies = counts.map(|n| if n == 0 { 0 } else { share(n).clamp(1, sum - 1) });
        let used = |symbol: &usize| counts[*symbol] > 0;
        loop {
            let total: u32 = frequencies.iter().sum();
            // whose count is the largest beside its frequency gets more, whose is the smallest gives
            let ratio = |n: u64, frequency: u32| (u128::from(n) << 32) / u128::from(frequency.max(1));
            let symbol = match total.cmp(&sum) {
                std::cmp::Ordering::Equal => return Some(Self { bits, frequencies }),
                std::cmp::Ordering::Less => {
                    (0..256).filter(used).max_by_key(|s| ratio(counts[*s], frequencies[*s]))?
                }
                std::cmp::Ordering::Greater => {
                    let can_give = |s: &usize| frequencies[*s] > 1;
                    (0..256).filter(can_give).min_by_key(|s| ratio(counts[*s], frequencies[*s] - 1))?
                }
            };
            if total < sum {
                frequencies[symbol] += 1;
            } else {
                frequencies[symbol] -= 1;
            }
        }
    }

    pub(super) fn bits(&self) -> u8 {
        self.bits
    }

    fn span(&self) -> [usize; 2] {
        let used = |frequency: &u32| *frequency > 0;
        let first = self.frequencies.iter().position(used).unwrap_or(0);
        [first, self.frequencies.iter().rposition(used).unwrap_or(0)]
    }

    fn spanned(&self) -> &[u32] {
        let [first, last] = self.span();
        &self.frequencies[first..=last]
    }

    /// Bits of the table with a code of this order.
    fn cost(&self, order: u32) -> u64 {
        let of = |frequency: &u32| u64::from(2 * (frequency + (1 << order)).ilog2() - order + 1);
        20 + self.spanned().iter().map(of).sum::<u64>()
    }

    fn order(&self) -> u32 {
        (0..16).min_by_key(|order| self.cost(*order)).unwrap_or(0)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (mut bits, order) = (BitWriter::default(), self.order());
        let [first, last] = self.span();
        bits.write(first as u64 | (last as u64) << 8 | u64::from(order) << 16, 20);
        for frequency in self.spanned() {
            let number = frequency + (1 << order);
            let length = number.ilog2();
            // as many zeros as there are bits beyond the order, a one, and the bits below the highest
            bits.write(1 << (length - order), length - order + 1);
            bits.write(u64::from(number - (1 << length)), length);
        }
        out.extend(bits.finish());
    }

    pub(super) fn read(bits: u8, bytes: &[u8]) -> Result<(Self, &[u8]), EntropyError> {
        if !BITS.contains(&bits) {
            return Err(EntropyError("is of no known kind"));
        }
        let mut reader = BitReader::new(bytes);
        let mut read = |count| reader.read(count).ok_or(EntropyError("ends within its table"));
        let (first, last, order) = (read(8)? as usize, read(8)? as usize, read(4)? as u32);
        let mut frequencies = [0; 256];
        let bad = EntropyError("has a table whose frequencies are not those of its sum");
        for frequency in frequencies.get_mut(first..=last).ok_or(bad)? {
            let mut length = order;
            while read(1)? == 0 {
                length += 1;
                if length > 16 {
                    return Err(bad);
                }
            }
            *frequency = ((1 << length) + read(length)? - (1 << order)) as u32;
        }
        let sum = frequencies.iter().map(|frequency| u64::from(*frequency)).sum::<u64>();
        if sum != 1 << bits || frequencies.iter().any(|frequency| u64::from(*frequency) == sum) {
            return Err(bad);
        }
        Ok((Self { bits, frequencies }, reader.rest()))
    }

    pub(super) fn shares(&self) -> [Share; 256] {
        let mut start = 0;
        self.frequencies.map(|frequency| {
            let share = Share { frequency: frequency as u16, start: start as u16 };
            start += frequency;
            share
        })
    }

    pub(super) fn decoder(&self) -> Decoder {
        let symbols = (0u8..=255).zip(self.frequencies);
        let symbols = symbols.flat_map(|(symbol, frequency)| std::iter::repeat_n(symbol, frequency as usize));
        Decoder { bits: self.bits, symbols: symbols.collect(), shares: self.shares() }
    }
}

/// The logarithm of a number that is not 0, in integers: a platform's own may differ in the last bit.
fn log2(number: u32) -> u64 {
    let whole = number.ilog2();
    // the number as 1.31 bits, squared for every bit of the fraction
    let mut x = u64::from(number) << (31 - whole);
    let mut log = u64::from(whole);
    for _ in 0..FRACTION {
        x = (x * x) >> 31;
        log <<= 1;
        if x >= 1 << 32 {
            x >>= 1;
            log |= 1;
        }
    }
    log
}
