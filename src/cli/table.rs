//! Numbers in columns.

/// Rows of equal column widths, two spaces apart; columns flush left where `left` says so, the others flush right. Short
/// rows end early.
pub(super) fn aligned<R: AsRef<[String]>>(rows: &[R], left: impl Fn(usize) -> bool) -> String {
    let columns = rows.iter().map(|r| r.as_ref().len()).max().unwrap_or(0);
    let cell = |row: &R, c: usize| row.as_ref().get(c).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> = (0..columns).map(|c| rows.iter().map(|row| cell(row, c)).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .as_ref()
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (cell, &width))| if left(c) { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
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
        let rows =
            [vec!["a", "10"], vec!["long", "9", "x"]].map(|r| r.into_iter().map(String::from).collect::<Vec<_>>());
        assert_eq!(aligned(&rows, |c| c == 0), "a     10\nlong   9  x\n");
        assert_eq!(aligned::<Vec<String>>(&[], |_| true), "");
    }

    #[test]
    fn three_digits() {
        let shown = [0.0, 0.01234, 1.234, 12.34, 123.4, 1234.6, f64::NAN, -1.0].map(digits);
        assert_eq!(shown, ["0", "0.0123", "1.23", "12.3", "123", "1235", "NaN", "-1.00"]);
    }
}
