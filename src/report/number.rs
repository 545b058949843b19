//! Numbers for readers.

/// `1234567` → `1,234,567`.
pub(crate) fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A fraction in percent.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1}%", fraction * 100.0)
}

/// Four significant digits, whole thousands in groups; very large and very small numbers with an exponent.
pub(crate) fn significant(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() || !(1e-4..1e15).contains(&magnitude) {
        return if value.is_finite() { format!("{value:.2e}") } else { value.to_string() };
    }
    if magnitude >= 999.5 {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", group_digits(magnitude.round() as u64));
    }
    let decimals = (3 - magnitude.log10().floor() as i32).max(0) as usize;
    format!("{value:.decimals$}")
}

/// A value with its unit: `89.82%`, `0.8199`, `12.30 ms`.
pub(crate) fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "%" => format!("{value:.2}%"),
        "bytes" if value.is_finite() && value >= 0.0 => bytes(value),
        "" => significant(value),
        unit => format!("{} {unit}", significant(value)),
    }
}

/// A difference with its sign, without the unit: three significant digits, or the two decimals of a percentage.
pub(crate) fn signed(value: f64, unit: &str) -> String {
    match unit {
        "%" => format!("{value:+.2}"),
        "bytes" => format!("{value:+.0}"),
        _ if value == 0.0 => "+0".to_owned(),
        _ if !value.is_finite() || value.abs() < 1e-4 => format!("{value:+.1e}"),
        _ => {
            let decimals = (2 - value.abs().log10().floor() as i32).max(0) as usize;
            let text = format!("{value:+.decimals$}");
            let fraction = text.contains('.');
            if fraction { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
    }
}

/// `1234567` → `1.235 MB`: decimal units.
pub(crate) fn bytes(value: f64) -> String {
    let (unit, scale) = byte_unit(value);
    if scale == 1.0 { format!("{value:.0} bytes") } else { format!("{} {unit}", significant(value / scale)) }
}

/// The decimal unit that suits so many bytes, and its size.
pub(crate) fn byte_unit(value: f64) -> (&'static str, f64) {
    match value {
        v if v >= 1e12 => ("TB", 1e12),
        v if v >= 1e9 => ("GB", 1e9),
        v if v >= 1e6 => ("MB", 1e6),
        v if v >= 1e3 => ("kB", 1e3),
        _ => ("bytes", 1.0),
    }
}

/// An amount of money: `0.0037`, `0.37`, `1,234`.
pub(crate) fn money(amount: f64) -> String {
    let magnitude = amount.abs();
    if magnitude < 1e-4 && magnitude > 0.0 {
        format!("{amount:.1e}")
    } else if magnitude < 0.1 && magnitude > 0.0 {
        let decimals = (1 - magnitude.log10().floor() as i32) as usize;
        format!("{amount:.decimals$}")
    } else if magnitude < 999.5 {
        format!("{amount:.2}")
    } else {
        significant(amount)
    }
}

/// A volume: `1e9`, `2.5e6`, `1,234`.
pub(crate) fn volume(amount: f64) -> String {
    if amount >= 1e5 { format!("{amount:e}") } else { significant(amount) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_they_are_read() {
        let texts = [0.8199, 15.321, 0.001_234, 999.6, -1234.5, 1e16, 2.5e-5, 123.456].map(significant);
        assert_eq!(texts, ["0.8199", "15.32", "0.001234", "1,000", "-1,235", "1.00e16", "2.50e-5", "123.5"]);
        assert_eq!([with_unit(89.815, "%"), with_unit(1.5, "ms")], ["89.81%", "1.500 ms"]);
        assert_eq!([bytes(999.0), bytes(1_066_928.0)], ["999 bytes", "1.067 MB"]);
        assert_eq!(
            [money(0.0037), money(0.37), money(1234.4), money(0.0)],
            ["0.0037", "0.37", "1,234", "0.00"]
        );
        assert_eq!([volume(1e9), volume(2.5e6), volume(1234.0)], ["1e9", "2.5e6", "1,234"]);
        assert_eq!(
            [signed(0.25, "%"), signed(-0.5, ""), signed(0.029_99, ""), signed(125.2, "")],
            ["+0.25", "-0.5", "+0.03", "+125"]
        );
        assert_eq!(group_digits(1_234_567), "1,234,567");
    }
}
