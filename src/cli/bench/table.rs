//! Numbers in columns.

/// Rows of equal column widths, two spaces apart; the first column flush left, the others flush right. Short rows end early.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, &width))| match c {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Three significant digits, as far as they lie behind the point: 0.0123, 1.23, 12.3, 123, 1234.
pub(super) fn digits(v: f64) -> String {
    if v == 0.0 || !v.is_finite() {
        return format!("{v}");
    }
    let places = (2 - v.abs().log10().floor() as i32).clamp(0, 9) as usize;
    format!("{v:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a", "10"], vec!["long", "9", "x"]].map(|r| r.into_iter().map(String::from).collect());
        assert_eq!(aligned(&rows), "a     10\nlong   9  x\n");
        assert_eq!(aligned(&[]), "");
    }

    #[test]
    fn three_digits() {
        let shown = [0.0, 0.01234, 1.234, 12.34, 123.4, 1234.6, f64::NAN, -1.0].map(digits);
        assert_eq!(shown, ["0", "0.0123", "1.23", "12.3", "123", "1235", "NaN", "-1.00"]);
    }
}
