//! Symbols in as few bits as their frequencies allow: asymmetric numeral systems with ranges (Duda, "Asymmetric numeral
//! systems", 2013), states of 32 bits, words of 16, four states side by side.
//!
//! A stream is a byte that says how the symbols are written, and the symbols:
//!
//! * 0: all symbols are the byte that follows;
//! * 1 to 8: so many bits for each, lowest first, up to a whole byte;
//! * 16 + `b`, 8 ≤ `b` ≤ 14: a table of frequencies whose sum is `2^b`; for every chunk of 2^16 symbols its bytes, as a number of
//!   7 bits a byte, lowest first, the highest bit of all but the last set; the chunks.
//!
//! A table is a stream of bits, lowest first, up to a whole byte: 8 bits of the first symbol with a frequency, 8 of the last, 4
//! of an order `k`, and for each symbol from the first to the last its frequency as an exponential Golomb code of order `k`.
//! A chunk of at least 4096 symbols has four states, and symbol `i` is of state `i mod 4`; a smaller one has one. It begins with the states,
//! 4 bytes each; the words follow that the states are filled up from. When all symbols are read, all words are, and
//! every state is `2^16` again: by that most damage is found out, but not all that concerns the last few symbols.

mod bits;
mod chunk;
mod gaps;
mod table;

use rayon::prelude::*;

pub(crate) use bits::{read_varint, write_varint};
pub(crate) use gaps::{Gaps, read_gaps};

use super::pack;
use super::view::le_bytes;
use table::Table;

/// Symbols that are decoded apart from others.
const CHUNK: usize = 1 << 16;

const CODED: u8 = 16;

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entropy-coded stream {0}")]
pub struct EntropyError(pub(crate) &'static str);

/// How often each symbol occurs.
pub(crate) fn histogram(symbols: &[u8]) -> [u64; 256] {
    let of_piece = |symbols: &[u8]| {
        // four tables, since the same symbol again would wait for the count before
        let mut counts = [[0u32; 256]; 4];
        let (fours, rest) = symbols.as_chunks::<4>();
        for four in fours {
            for (counts, symbol) in counts.iter_mut().zip(four) {
                counts[usize::from(*symbol)] += 1;
            }
        }
        for symbol in rest {
            counts[0][usize::from(*symbol)] += 1;
        }
        std::array::from_fn(|symbol| counts.iter().map(|counts| u64::from(counts[symbol])).sum())
    };
    let add = |a: [u64; 256], b: [u64; 256]| std::array::from_fn(|symbol| a[symbol] + b[symbol]);
    symbols.par_chunks(1 << 20).map(of_piece).reduce(|| [0; 256], add)
}

/// Bits that symbols of these counts take at least, if each is written by itself: Shannon's bound of order 0.
pub fn bound(counts: &[u64; 256]) -> f64 {
    let all = counts.iter().sum::<u64>() as f64;
    counts.iter().filter(|n| **n > 0).map(|n| *n as f64 * (all / *n as f64).log2()).sum()
}

/// Appends the stream of some symbols to `out`, and gives the [`bound`] of its bits.
///
/// ```
/// use tersor::kernels::entropy::{decode, encode};
///
/// let symbols: Vec<u8> = (0..10_000u32).map(|i| (i * i % 7 / 5) as u8).collect();
/// let mut bytes = Vec::new();
/// let bound = encode(&symbols, &mut bytes);
/// assert!((bytes.len() as f64) < 1.01 * bound / 8.0 + 16.0);
///
/// let mut read = vec![0; symbols.len()];
/// let rest = decode(&bytes, &mut read)?;
/// assert!(read == symbols && rest.is_empty());
/// # Ok::<(), tersor::kernels::entropy::EntropyError>(())
/// ```
pub fn encode(symbols: &[u8], out: &mut Vec<u8>) -> f64 {
    let counts = histogram(symbols);
    let used = counts.iter().filter(|n| **n > 0).count();
    if used <= 1 {
        out.extend([0, symbols.first().copied().unwrap_or(0)]);
        return 0.0;
    }
    let begin = out.len();
    let largest = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
    let width = (usize::BITS - largest.leading_zeros()) as u8;
    let plain = 1 + (symbols.len() * usize::from(width)).div_ceil(8);
    let table = Table::of(&counts);
    out.push(CODED + table.bits());
    table.write(out);
    let chunks: Vec<Vec<u8>> =
        symbols.par_chunks(CHUNK).map(|symbols| chunk::encode(symbols, &table)).collect();
    for chunk in &chunks {
        write_varint(chunk.len() as u64, out);
    }
    for chunk in chunks {
        out.extend(chunk);
    }
    if out.len() - begin >= plain {
        out.truncate(begin);
        out.push(width);
        let mut words = vec![0; pack::words_for(symbols.len(), width)];
        pack::pack(symbols, width, &mut words);
        out.extend(&le_bytes(&words)[..plain - 1]);
    }
    bound(&counts)
}

/// Reads as many symbols as `symbols` has room for, and gives the bytes behind their stream.
///
/// # Errors
/// When the bytes are no stream of so many symbols.
pub fn decode<'b>(bytes: &'b [u8], symbols: &mut [u8]) -> Result<&'b [u8], EntropyError> {
    let (kind, bytes) = bytes.split_first().ok_or(EntropyError("is empty"))?;
    match *kind {
        0 => {
            let (symbol, rest) = bytes.split_first().ok_or(EntropyError("ends before its symbol"))?;
            symbols.fill(*symbol);
            Ok(rest)
        }
        width @ 1..=8 => {
            let len = (symbols.len() * usize::from(width)).div_ceil(8);
            let (packed, rest) = bytes.split_at_checked(len).ok_or(EntropyError("ends too early"))?;
            let mut padded = packed.to_vec();
            padded.resize(4 * pack::words_for(symbols.len(), width), 0);
            let words: Vec<u32> = padded.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            pack::unpack(&words, width, 0, symbols);
            Ok(rest)
        }
        kind => {
            let bits = kind.checked_sub(CODED).ok_or(EntropyError("is of no known kind"))?;
            let (table, mut bytes) = Table::read(bits, bytes)?;
            let decoder = table.decoder();
            let mut lengths = Vec::new();
            for _ in 0..symbols.len().div_ceil(CHUNK) {
                let (length, rest) = read_varint(bytes).ok_or(EntropyError("ends within its index"))?;
                lengths.push(length);
                bytes = rest;
            }
            let mut chunks = Vec::with_capacity(lengths.len());
            for length in lengths {
                let length = usize::try_from(length).ok();
                let parts = length.and_then(|length| bytes.split_at_checked(length));
                let (chunk, rest) = parts.ok_or(EntropyError("ends before its last chunk"))?;
                chunks.push(chunk);
                bytes = rest;
            }
            let pieces = symbols.par_chunks_mut(CHUNK).zip(chunks);
            pieces.try_for_each(|(symbols, chunk)| chunk::decode(chunk, &decoder, symbols))?;
            Ok(bytes)
        }
    }
}

#[cfg(test)]
mod tests;
