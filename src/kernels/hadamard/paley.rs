//! Hadamard matrices from the squares of finite fields.
//!
//! Paley, "On orthogonal matrices" (1933): with χ the quadratic character of a field of `q` elements, `χ(a − b)` over all
//! pairs makes a matrix of order `q + 1` if `q ≡ 3 (mod 4)`, and one of order `2(q + 1)` if `q ≡ 1 (mod 4)`.

/// A finite field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// The prime.
    characteristic: usize,
    /// The power of the prime that is the number of elements.
    degree: u32,
}

/// The field over which a matrix of this order is made.
pub(super) fn field(order: usize) -> Option<Field> {
    let first = order.checked_sub(1).filter(|q| q % 4 == 3);
    let second = (order / 2).checked_sub(1).filter(|q| order.is_multiple_of(2) && q % 4 == 1 && *q > 1);
    [first, second].into_iter().flatten().find_map(Field::of_size)
}

/// The matrix of this order, row-major.
pub(super) fn matrix(order: usize) -> Option<Vec<i8>> {
    let field = field(order)?;
    let size = field.size();
    let character = field.characters()?;
    // bordered by ones: symmetric where −1 is a square of the field, else antisymmetric
    let is_first = size + 1 == order;
    let core = |row: usize, col: usize| match (row, col) {
        (0, 0) => 0,
        (0, _) => 1,
        (_, 0) => {
            if is_first {
                -1
            } else {
                1
            }
        }
        _ => character[field.difference(row - 1, col - 1)],
    };
    let value = |row: usize, col: usize| {
        if is_first {
            return if row == col { 1 } else { core(row, col) };
        }
        let is_last = |index: usize| index % 2 == 1;
        match (row / 2, col / 2) {
            (a, b) if a == b => {
                if is_last(row) || is_last(col) {
                    -1
                } else {
                    1
                }
            }
            (a, b) => {
                if is_last(row) && is_last(col) {
                    -core(a, b)
                } else {
                    core(a, b)
                }
            }
        }
    };
    Some((0..order).flat_map(|row| (0..order).map(move |col| value(row, col))).collect())
}

impl Field {
    fn of_size(size: usize) -> Option<Self> {
        let characteristic = (2..=size).find(|d| size.is_multiple_of(*d))?;
        let degree = size.ilog(characteristic);
        (characteristic.pow(degree) == size).then_some(Self { characteristic, degree })
    }

    fn size(self) -> usize {
        self.characteristic.pow(self.degree)
    }

    /// Elements are polynomials over the prime field; the coefficients are the digits of their number.
    fn digits(self, element: usize) -> Vec<usize> {
        let digit = |i| element / self.characteristic.pow(i) % self.characteristic;
        (0..self.degree).map(digit).collect()
    }

    fn number(self, digits: &[usize]) -> usize {
        digits.iter().rev().fold(0, |number, digit| number * self.characteristic + digit)
    }

    fn difference(self, a: usize, b: usize) -> usize {
        let p = self.characteristic;
        let digits: Vec<usize> =
            self.digits(a).iter().zip(self.digits(b)).map(|(a, b)| (a + p - b) % p).collect();
        self.number(&digits)
    }

    /// 1 for the squares, −1 for what is no square, 0 for 0; by number of the element.
    fn characters(self) -> Option<Vec<i8>> {
        let powers = (0..self.size()).find_map(|low| self.powers(&self.digits(low)))?;
        let mut characters = vec![0; self.size()];
        for (exponent, element) in powers.into_iter().enumerate() {
            characters[element] = if exponent % 2 == 0 { 1 } else { -1 };
        }
        Some(characters)
    }

    /// The powers of `x` modulo `x^degree + low`, if they are all elements but 0: then the polynomial makes a field, of
    /// which they tell the squares.
    fn powers(self, low: &[usize]) -> Option<Vec<usize>> {
        let p = self.characteristic;
        let mut digits = self.digits(1);
        let mut powers = vec![1];
        loop {
            let lead = digits.pop()?;
            digits.insert(0, 0);
            for (digit, low) in digits.iter_mut().zip(low) {
                *digit = (*digit + (p - lead) * low) % p;
            }
            let power = self.number(&digits);
            match power {
                1 => return (powers.len() == self.size() - 1).then_some(powers),
                0 => return None,
                _ if powers.len() == self.size() => return None,
                _ => powers.push(power),
            }
        }
    }
}
