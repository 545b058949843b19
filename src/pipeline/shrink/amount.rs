use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use crate::prune::Sparsity;

/// How many of some units are left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many.
    Count(usize),
    /// This fraction. What stays is rounded up to a multiple, so that products stay fast: unless
    /// [another](super::Shrink::multiple) is chosen, to that of the largest power of two, up to 32, that divides the number
    /// there was.
    Fraction(Sparsity),
}

/// Largest power of two that what stays is rounded up to.
const LARGEST_MULTIPLE: usize = 32;

impl Amount {
    /// How many of `count` stay.
    pub(super) fn kept(self, count: usize, multiple: Option<NonZeroUsize>) -> usize {
        let (kept, usual) = match self {
            Self::Count(removed) => (count.saturating_sub(removed), 1),
            Self::Fraction(fraction) => {
                let of_two = 1 << count.trailing_zeros().min(LARGEST_MULTIPLE.ilog2());
                (count - fraction.of(count as u64) as usize, of_two)
            }
        };
        kept.next_multiple_of(multiple.map_or(usual, NonZeroUsize::get)).min(count)
    }
}

impl FromStr for Amount {
    type Err = String;

    /// `25%`, or `3` for three.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a share such as 25% nor a number such as 3");
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
                let fraction = Sparsity::new(percent / 100.0);
                fraction.map(Self::Fraction).map_err(|_| "a share must be at least 0% and below 100%".into())
            }
            None => text.trim().parse().map(Self::Count).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Fraction(fraction) => write!(f, "{}%", fraction.get() * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_a_multiple() {
        let kept = |text: &str, count, multiple| {
            text.parse::<Amount>().unwrap().kept(count, NonZeroUsize::new(multiple))
        };
        // 1536 and its three quarters are multiples of 32
        assert_eq!(kept("25%", 1536, 0), 1152);
        // 153.6 go, so that 1382.4 would stay: 1382 rounded up
        assert_eq!(kept("10%", 1536, 0), 1408);
        assert_eq!(kept("10%", 1536, 1), 1382);
        // 300 is a multiple of 4, three of nothing but 1
        assert_eq!(kept("50%", 300, 0), 152);
        assert_eq!(kept("33.4%", 3, 0), 2);
        // a number is a number
        assert_eq!(kept("10", 1536, 0), 1526);
        assert_eq!(kept("10", 1536, 8), 1528);
        assert_eq!(kept("2000", 1536, 0), 0);
        assert_eq!(kept("1%", 10, 16), 10);
    }

    #[test]
    fn what_is_no_amount_is_said() {
        for (text, part) in [
            ("a", "neither"),
            ("100%", "below 100%"),
            ("-1", "neither"),
            ("0.25", "neither"),
            ("%", "neither"),
        ] {
            let error = text.parse::<Amount>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
