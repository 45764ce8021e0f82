//! Columns of text.

/// Columns as wide as their widest cell, two spaces apart, no space at the end of a line. `paint`
/// gets each cell with its row and column, and must not change its width on the screen.
pub fn align<const N: usize>(
    rows: &[[String; N]],
    paint: impl Fn(usize, usize, &str) -> String,
) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let last = row.iter().rposition(|cell| !cell.is_empty()).unwrap_or(0);
        for (column, (width, cell)) in widths.iter().zip(row).enumerate().take(last + 1) {
            text.push_str(&paint(at, column, cell));
            if column < last {
                text.extend(std::iter::repeat_n(' ', 2 + width - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

/// Keys and their values, a line each.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in rows {
        let gap = " ".repeat(13_usize.saturating_sub(key.chars().count()).max(1));
        text.extend([key, gap.as_str(), value, "\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_with_words() {
        let rows =
            [["a", "long", "x"], ["", "b", ""], ["äö", "", "y"]].map(|r| r.map(str::to_owned));
        let text = align(&rows, |row, column, cell| {
            if (row, column) == (0, 0) { cell.to_uppercase() } else { cell.to_owned() }
        });
        assert_eq!(text, "A   long  x\n    b\näö        y\n");
    }
}
