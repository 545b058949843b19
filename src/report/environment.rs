use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::kernels::level::CpuLevel;

/// Where and when something was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Environment {
    /// Version of tersor.
    pub tersor: String,
    /// When, in UTC: `2025-06-30T12:00:00Z`.
    pub date: String,
    /// Operating system.
    pub os: String,
    /// Instruction set architecture.
    pub arch: String,
    /// What the processor calls itself, where the system tells.
    pub cpu: Option<String>,
    /// Processors that this process may use.
    pub cores: usize,
    /// Threads of the pool that the measurements used.
    pub threads: usize,
    /// Instructions that the kernels used: `portable`, `avx2`, `avx512`.
    pub level: String,
}

impl Environment {
    /// This machine, now.
    pub fn current() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            tersor: env!("CARGO_PKG_VERSION").to_owned(),
            date: iso_date(seconds),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: std::fs::read_to_string("/proc/cpuinfo").ok().as_deref().and_then(cpu_model),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            level: CpuLevel::current().to_string(),
        }
    }
}

/// The name of the first processor in the text of `/proc/cpuinfo`.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let (_, model) = fields.find(|(key, _)| key.trim() == "model name")?;
    Some(model.trim().to_owned()).filter(|model| !model.is_empty())
}

/// Seconds since 1970 as a date and time of ISO 8601, after H. Hinnant's `civil_from_days`.
fn iso_date(seconds: u64) -> String {
    const DAYS_OF_ERA: u64 = 146_097; // 400 years
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400); // since 0000-03-01
    let (era, day_of_era) = (days / DAYS_OF_ERA, days % DAYS_OF_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (DAYS_OF_ERA - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // from March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_date_prints_them() {
        // `date -u -d @N +%FT%TZ`
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(iso_date(seconds), date);
        }
    }

    #[test]
    fn the_processor_by_name() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Some CPU: 5\n").as_deref(), Some("Some CPU: 5"));
        assert_eq!(cpu_model("processor\t: 0\nBogoMIPS\t: 50\n"), None);
    }
}
