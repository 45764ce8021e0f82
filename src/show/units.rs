//! Amounts and times for people.

/// Bytes with a binary unit, as sizes are written on the command line: `64M`, `1.5G`.
pub fn bytes(n: u64) -> String {
    let (unit, shift) = match n {
        0..0x400 => return format!("{n}B"),
        0x400..0x10_0000 => ('K', 10),
        0x10_0000..0x4000_0000 => ('M', 20),
        0x4000_0000..0x100_0000_0000 => ('G', 30),
        _ => ('T', 40),
    };
    let whole = n >> shift;
    // One decimal, cut off: 1023.97M is shown as 1023.9M, never as 1024.0M.
    let tenth = ((n & ((1 << shift) - 1)) * 10) >> shift;
    if tenth == 0 || whole >= 100 {
        format!("{whole}{unit}")
    } else {
        format!("{whole}.{tenth}{unit}")
    }
}

/// A span of seconds in its two largest units: `42s`, `3m 20s`, `5d 2h`.
pub fn span(seconds: u64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (d, h, m) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{m}m {}s", seconds % 60),
        (0, _, _) => format!("{h}h {}m", m % 60),
        _ => format!("{d}d {}h", h % 24),
    }
}

/// Microseconds as people say them: `850 us`, `12.3 ms`, `4.20 s`.
pub fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

/// Milliseconds as [`micros`] says them; nonsense (negative, not a number) as zero.
pub fn millis(ms: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast from floats saturates, and makes zero of what is no number"
    )]
    let us = (ms * 1000.0).round() as u64;
    micros(us)
}

/// A count with thousands set apart: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (n, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1K"),
            (64 << 20, "64M"),
            ((64 << 20) + (1 << 19), "64.5M"),
            ((1 << 30) - 1, "1023M"),
            (3 << 29, "1.5G"),
            (1 << 40, "1T"),
            (u64::MAX, "16777215T"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!((span(0), span(200)), ("0s".into(), "3m 20s".into()));
        assert_eq!((span(7260), span(180_000)), ("2h 1m".into(), "2d 2h".into()));
        assert_eq!((micros(850), micros(12_345)), ("850 us".into(), "12.3 ms".into()));
        assert_eq!(micros(4_209_000), "4.20 s");
        assert_eq!((millis(0.85), millis(12.345)), ("850 us".into(), "12.3 ms".into()));
        assert_eq!((millis(-1.0), millis(f64::NAN)), ("0 us".into(), "0 us".into()));
        assert_eq!((count(0), count(999), count(1000)), ("0".into(), "999".into(), "1,000".into()));
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
