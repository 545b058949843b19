use crate::kernels::attention::KeyValues;

/// Keys and values of the tokens that a [`Decoder`](super::Decoder) has seen: what it needs of them to go on.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) blocks: Vec<KeyValues>,
    pub(super) len: usize,
}

impl Cache {
    /// Number of tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was seen.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens, but keeps the room.
    pub fn clear(&mut self) {
        self.blocks.iter_mut().for_each(KeyValues::clear);
        self.len = 0;
    }
}
