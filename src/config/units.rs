//! Sizes and durations as users write them.

/// Parses a size: a number with `K`, `M`, `G` or `T` (binary, so `1G` is a GiB), or plain bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size: write for example 512M or 2G");
    let upper = text.trim().to_ascii_uppercase();
    let core = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let split = core.find(|c: char| !c.is_ascii_digit()).unwrap_or(core.len());
    let (digits, unit) = core.split_at(split);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// Parses a duration with its unit: `300ms`, `90s`, `30m`, `2h`. A bare number is refused.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("'{text}' is not a duration: write for example 300ms, 90s or 30m");
    let text_trimmed = text.trim();
    let split = text_trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (digits, unit) = text_trimmed.split_at(split);
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    number.checked_mul(ms).map(std::time::Duration::from_millis).ok_or_else(bad)
}
