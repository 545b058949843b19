//! Which instructions the kernels may use: found once at run time, and lowered on request.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// The environment variable that lowers the level.
const VARIABLE: &str = "TERSOR_CPU";

/// A set of instructions that every kernel has a version for. Results are the same bits at every level. Products of floats are
/// fused multiply-adds, which the processor may lack at the lowest level: it is slow then.
///
/// ```
/// use tersor::CpuLevel;
///
/// assert!(CpuLevel::current() <= CpuLevel::detected());
/// assert_eq!("avx2".parse(), Ok(CpuLevel::Avx2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CpuLevel {
    /// What the compiler makes of plain Rust: the specification of the others.
    Portable = 1,
    /// x86-64 with AVX2, FMA and F16C (x86-64-v3).
    Avx2 = 2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512 = 3,
}

/// A level that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuLevelError {
    /// A name that is none of `portable`, `avx2`, `avx512`.
    #[error("`{0}` is no instruction level: use portable, avx2 or avx512")]
    Unknown(String),
    /// A level above what the processor has.
    #[error("instruction level {asked} was asked for, but this processor has {detected}")]
    Unavailable {
        /// The level asked for.
        asked: CpuLevel,
        /// The highest there is.
        detected: CpuLevel,
    },
}

/// The level in use; 0 until it is first asked for.
static CURRENT: AtomicU8 = AtomicU8::new(0);

impl CpuLevel {
    /// All levels, lowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The highest level that this processor has.
    pub fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2")
                && has!("fma")
                && has!("f16c")
                && has!("bmi1")
                && has!("bmi2")
                && has!("lzcnt")
                && has!("popcnt");
            let avx512 = has!("avx512f")
                && has!("avx512bw")
                && has!("avx512dq")
                && has!("avx512vl")
                && has!("avx512vnni");
            if avx2 && avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// The level in use: the highest, unless the environment variable `TERSOR_CPU` (`portable`, `avx2`, `avx512`) or
    /// [`CpuLevel::set_current`] lowered it. A value of the variable that cannot be had is not obeyed;
    /// [`CpuLevel::from_env`] tells.
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            1 => Self::Portable,
            2 => Self::Avx2,
            3 => Self::Avx512,
            _ => {
                let level = Self::from_env().ok().flatten().unwrap_or_else(Self::detected);
                CURRENT.store(level as u8, Ordering::Relaxed);
                level
            }
        }
    }

    /// Chooses the level for all threads of the program.
    ///
    /// # Errors
    /// When the processor lacks it.
    pub fn set_current(self) -> Result<(), CpuLevelError> {
        self.check()?;
        CURRENT.store(self as u8, Ordering::Relaxed);
        Ok(())
    }

    /// The level that the environment variable `TERSOR_CPU` asks for; `None` when it is not set or empty.
    ///
    /// # Errors
    /// When its value names no level, or one that the processor lacks.
    pub fn from_env() -> Result<Option<Self>, CpuLevelError> {
        match std::env::var_os(VARIABLE) {
            Some(value) if !value.is_empty() => {
                let level: Self = value.to_string_lossy().parse()?;
                level.check()?;
                Ok(Some(level))
            }
            _ => Ok(None),
        }
    }

    fn check(self) -> Result<(), CpuLevelError> {
        let detected = Self::detected();
        if self > detected { Err(CpuLevelError::Unavailable { asked: self, detected }) } else { Ok(()) }
    }
}

impl FromStr for CpuLevel {
    type Err = CpuLevelError;

    fn from_str(name: &str) -> Result<Self, CpuLevelError> {
        Self::ALL
            .into_iter()
            .find(|level| level.to_string() == name)
            .ok_or_else(|| CpuLevelError::Unknown(name.to_owned()))
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// Proof that the processor has AVX2, FMA and F16C: made only where they were found.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI, and all of [`Avx2`].
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof that the processor has AVX-512 VBMI2, which is in no level, and all of [`Avx512`].
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vbmi2(());

/// The instructions that a call uses. Each variant carries the proof that they exist.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Isa {
    /// The instructions of the level in use.
    pub(crate) fn current() -> Self {
        Self::of(CpuLevel::current())
    }

    /// VBMI2, if this level goes that far and the processor has it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn vbmi2(self) -> Option<Vbmi2> {
        match self {
            Self::Avx512(_) if std::arch::is_x86_feature_detected!("avx512vbmi2") => Some(Vbmi2(())),
            _ => None,
        }
    }

    fn of(level: CpuLevel) -> Self {
        debug_assert!(level <= CpuLevel::detected());
        match level {
            // `CURRENT` only ever holds a level that was detected
            #[cfg(target_arch = "x86_64")]
            CpuLevel::Avx512 => Self::Avx512(Avx512(())),
            #[cfg(target_arch = "x86_64")]
            CpuLevel::Avx2 => Self::Avx2(Avx2(())),
            _ => Self::Portable,
        }
    }

    /// Every set of instructions that this processor has, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        CpuLevel::ALL.into_iter().filter(|l| *l <= CpuLevel::detected()).map(Self::of).collect()
    }
}

/// Compiles a function of plain Rust once per level, and chooses by a leading [`Isa`] argument.
///
/// The body must be `#[inline(always)]`, so that the compiler vectorizes it anew with each level's instructions. The
/// compiler never fuses or reorders floating-point operations, hence the results are the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$meta])*
        #[inline]
        $vis fn $name(isa: $crate::kernels::level::Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            fn avx2($($arg: $type),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            fn avx512($($arg: $type),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match isa {
                $crate::kernels::level::Isa::Portable => $body($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the variant is the proof that the processor has these instructions.
                $crate::kernels::level::Isa::Avx2(_) => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::kernels::level::Isa::Avx512(_) => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names_and_an_order() {
        for level in CpuLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert!(CpuLevel::Portable < CpuLevel::Avx2 && CpuLevel::Avx2 < CpuLevel::Avx512);
        let error = "sse9".parse::<CpuLevel>().unwrap_err();
        assert_eq!(error.to_string(), "`sse9` is no instruction level: use portable, avx2 or avx512");
        let too_high = CpuLevelError::Unavailable { asked: CpuLevel::Avx512, detected: CpuLevel::Avx2 };
        assert_eq!(
            too_high.to_string(),
            "instruction level avx512 was asked for, but this processor has avx2"
        );
    }

    #[test]
    fn every_detected_level_can_be_chosen() {
        // other tests may run meanwhile: every level gives them the same results
        let before = CpuLevel::current();
        for level in CpuLevel::ALL {
            assert_eq!(level.set_current().is_ok(), level <= CpuLevel::detected());
        }
        assert_eq!(CpuLevel::current(), CpuLevel::detected());
        before.set_current().unwrap();
        assert_eq!(Isa::all().len(), CpuLevel::detected() as usize);
    }
}
