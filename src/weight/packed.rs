use super::WeightError;
use crate::kernels::pack;

/// Unsigned codes of 1 to 8 bits, packed into words; every row starts on a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackedCodes {
    bits: u8,
    row_len: usize,
    words_per_row: usize,
    words: Vec<u32>,
}

impl PackedCodes {
    /// Packs `rows` rows; `fill(row, out)` gives the codes of one.
    pub(crate) fn from_rows(
        bits: u8,
        rows: usize,
        row_len: usize,
        fill: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Self {
        use rayon::prelude::*;
        let words_per_row = pack::words_for(row_len, bits);
        let mut words = vec![0u32; rows * words_per_row];
        if words_per_row > 0 {
            words.par_chunks_mut(words_per_row).enumerate().for_each_init(
                || vec![0u8; row_len],
                |codes, (row, words)| {
                    fill(row, codes);
                    pack::pack(codes, bits, words);
                },
            );
        }
        Self { bits, row_len, words_per_row, words }
    }

    /// Packs one row.
    pub(crate) fn from_codes(bits: u8, codes: &[u8]) -> Self {
        Self::from_rows(bits, 1, codes.len(), |_, out| out.copy_from_slice(codes))
    }

    pub(crate) fn from_words(
        what: &'static str,
        bits: u8,
        rows: usize,
        row_len: usize,
        words: Vec<u32>,
    ) -> Result<Self, WeightError> {
        let words_per_row = pack::words_for(row_len, bits);
        WeightError::check_len(what, rows.saturating_mul(words_per_row), words.len())?;
        Ok(Self { bits, row_len, words_per_row, words })
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// Codes `start..start + out.len()` of a row.
    pub(crate) fn unpack(&self, row: usize, start: usize, out: &mut [u8]) {
        debug_assert!(start + out.len() <= self.row_len);
        let words = &self.words[row * self.words_per_row..(row + 1) * self.words_per_row];
        pack::unpack(words, self.bits, start, out);
    }
}
