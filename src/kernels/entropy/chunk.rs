use super::EntropyError;
use super::table::{Decoder, Table};

/// States are at least this between symbols.
const LOW: u32 = 1 << 16;

/// Symbols from which four states are worth their bytes.
const SIDE_BY_SIDE: usize = 1 << 12;

const EARLY: EntropyError = EntropyError("ends within a chunk");

pub(super) fn encode(symbols: &[u8], table: &Table) -> Vec<u8> {
    if symbols.len() < SIDE_BY_SIDE { encode_in::<1>(symbols, table) } else { encode_in::<4>(symbols, table) }
}

pub(super) fn decode(bytes: &[u8], decoder: &Decoder, symbols: &mut [u8]) -> Result<(), EntropyError> {
    if symbols.len() < SIDE_BY_SIDE {
        decode_in::<1>(bytes, decoder, symbols)
    } else {
        decode_in::<4>(bytes, decoder, symbols)
    }
}

fn encode_in<const STATES: usize>(symbols: &[u8], table: &Table) -> Vec<u8> {
    let (bits, shares) = (u32::from(table.bits()), table.shares());
    let mut states = [LOW; STATES];
    // the last symbol is written first, so that the first is read first
    let mut words = Vec::with_capacity(symbols.len() / 2);
    for (i, symbol) in symbols.iter().enumerate().rev() {
        let share = shares[usize::from(*symbol)];
        let (frequency, state) = (u32::from(share.frequency), &mut states[i % STATES]);
        if *state >= frequency << (32 - bits) {
            words.push(*state as u16);
            *state >>= 16;
        }
        *state = ((*state / frequency) << bits) + *state % frequency + u32::from(share.start);
    }
    let mut bytes = Vec::with_capacity(4 * STATES + 2 * words.len());
    bytes.extend(states.into_iter().flat_map(u32::to_le_bytes));
    bytes.extend(words.into_iter().rev().flat_map(u16::to_le_bytes));
    bytes
}

fn decode_in<const STATES: usize>(
    bytes: &[u8],
    decoder: &Decoder,
    symbols: &mut [u8],
) -> Result<(), EntropyError> {
    let (stored, words) = bytes.split_at_checked(4 * STATES).ok_or(EARLY)?;
    let mut states = [0; STATES];
    for (state, bytes) in states.iter_mut().zip(stored.as_chunks().0) {
        *state = u32::from_le_bytes(*bytes);
        if *state < LOW {
            return Err(EntropyError("begins a chunk with a state that no encoder leaves"));
        }
    }
    let (words, []) = words.as_chunks::<2>() else {
        return Err(EntropyError("has a chunk of a broken word"));
    };
    let mut words = words.iter();
    let mut rounds = symbols.chunks_exact_mut(STATES);
    for round in &mut rounds {
        for (symbol, state) in round.iter_mut().zip(&mut states) {
            *symbol = step(state, decoder, &mut words).ok_or(EARLY)?;
        }
    }
    for (symbol, state) in rounds.into_remainder().iter_mut().zip(&mut states) {
        *symbol = step(state, decoder, &mut words).ok_or(EARLY)?;
    }
    if words.next().is_some() || states.iter().any(|state| *state != LOW) {
        return Err(EntropyError("is not what an encoder wrote"));
    }
    Ok(())
}

/// The symbol of a state, which is then that before the symbol was written.
#[inline(always)]
fn step(state: &mut u32, decoder: &Decoder, words: &mut std::slice::Iter<'_, [u8; 2]>) -> Option<u8> {
    let slot = *state & ((1 << decoder.bits) - 1);
    let symbol = decoder.symbols[slot as usize];
    let share = decoder.shares[usize::from(symbol)];
    // below 2^32, since no frequency is all of the sum
    *state = u32::from(share.frequency) * (*state >> decoder.bits) + slot - u32::from(share.start);
    if *state < LOW {
        *state = *state << 16 | u32::from(u16::from_le_bytes(*words.next()?));
    }
    Some(symbol)
}
