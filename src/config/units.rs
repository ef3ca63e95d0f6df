//! Durations and sizes as people write them: `"2s"`, `"16MiB"`.
//!
//! Pure text to numbers; knows no key.

use std::time::Duration;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Ten years: longer than any device keeps a request, short enough that sums never overflow.
pub(super) const LONGEST: Duration = Duration::from_millis(3650 * DAY_MS);

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60 * 1000), ("h", 60 * 60 * 1000), ("d", DAY_MS)];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// `"500ms"`, `"2s"`, `"5m"`, `"72h"`, `"7d"`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    scaled(text, &DURATION_UNITS).map(Duration::from_millis).ok_or_else(|| {
        format!(
            "{} is not a duration; write a number and a unit, such as \"500ms\", \"2s\", \"5m\", \"72h\" or \"7d\"",
            quoted(text)
        )
    })
}

/// `"64KiB"`, `"10MB"`, or a plain number of bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    text.trim().parse().ok().or_else(|| scaled(text, &SIZE_UNITS)).ok_or_else(|| {
        format!("{} is not a size; write a number and a unit, such as \"64KiB\", \"16MiB\" or \"1GiB\"", quoted(text))
    })
}

/// Somebody's text inside a sentence: bounded, and with control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let unit = unit.trim_start();
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let exact = number.parse::<f64>().ok()? * factor as f64;
    // Above 2^53 a fraction can no longer be meant.
    (exact < 9e15).then_some(exact.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, ms) in [("500ms", 500), ("2s", 2000), ("5m", 300_000), ("72h", 259_200_000), ("7d", 604_800_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "s", "-1s", "5 parsecs", "5S", "1.2.3s", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit_or_as_bytes() {
        for (text, bytes) in [("64KiB", 65_536), ("16MiB", 16 << 20), ("1GiB", 1 << 30), ("10MB", 10_000_000), ("7", 7)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "-1", "5 lorries", "1 gib", "99999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quoted_text_is_bounded_and_harmless() {
        assert_eq!(quoted("a\u{1b}[31m"), r#""a\u{1b}[31m""#);
        assert!(quoted(&"x".repeat(1000)).chars().count() < 70);
    }
}
