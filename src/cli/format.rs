//! Numbers as people read them.

/// With commas: 270,896.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(d);
    }
    text
}

/// Three or four digits and a decimal prefix: 81.6 M.
pub(super) fn si(n: u64) -> String {
    scaled(n, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// Three or four digits and a binary unit: 1.04 MiB.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(n: u64, base: f64, units: &[&str]) -> String {
    let (mut v, mut unit) = (n as f64, 0);
    // 999.5 would be shown as 1000.
    while v >= base.min(999.5) && unit + 1 < units.len() {
        v /= base;
        unit += 1;
    }
    let number = match v {
        _ if unit == 0 => n.to_string(),
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    };
    format!("{number} {}", units[unit]).trim_end().to_string()
}

/// A share of one: 10.5 %.
pub(super) fn percent(part: f64, digits: usize) -> String {
    format!("{:.digits$} %", 100.0 * part)
}

/// `part` of `whole`: 10.5 %, from ten times on 15x, or a dash where there is no whole.
pub(super) fn share(part: u64, whole: u64) -> String {
    let ratio = part as f64 / whole as f64;
    match whole {
        0 => "-".into(),
        _ if ratio < 9.995 => percent(ratio, 1),
        _ => format!("{ratio:.0}x"),
    }
}

/// A duration: 42.1 s, 12 min 05 s, 3 h 04 min.
pub(super) fn time(seconds: f64) -> String {
    if seconds < 59.95 {
        return format!("{:.1} s", seconds.max(0.0));
    }
    let s = seconds.round() as u64;
    if s < 3600 { format!("{} min {:02} s", s / 60, s % 60) } else { format!("{} h {:02} min", s / 3600, s / 60 % 60) }
}

/// A duration as a clock shows it: 0:42, 12:05, 3:04:05.
pub(super) fn clock(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".into();
    }
    let s = seconds.max(0.0).round() as u64;
    if s < 3600 {
        format!("{}:{:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let counts = [0, 7, 999, 1000, 272_474, u64::MAX].map(count);
        assert_eq!(counts, ["0", "7", "999", "1,000", "272,474", "18,446,744,073,709,551,615"]);
        assert_eq!(
            [0, 999, 1000, 81_620_000, 999_600, 1_000_000].map(si),
            ["0", "999", "1.00 k", "81.6 M", "1.00 M", "1.00 M"]
        );
        assert_eq!(
            [0, 1023, 1024, 1 << 20, 1_089_896].map(bytes),
            ["0 B", "1.00 KiB", "1.00 KiB", "1.00 MiB", "1.04 MiB"]
        );
        assert!(si(u64::MAX).ends_with(" E") && bytes(u64::MAX).ends_with(" EiB"));
        assert_eq!([share(1, 8), share(1, 0), share(999, 100), share(153, 10)], ["12.5 %", "-", "999.0 %", "15x"]);
    }

    #[test]
    fn times_read_well() {
        let times = [0.0, 42.13, 59.94, 59.96, 61.0, 725.4, 3599.6, 11_045.0, -1.0].map(time);
        let wanted = [
            "0.0 s",
            "42.1 s",
            "59.9 s",
            "1 min 00 s",
            "1 min 01 s",
            "12 min 05 s",
            "1 h 00 min",
            "3 h 04 min",
            "0.0 s",
        ];
        assert_eq!(times, wanted);
        assert_eq!([0.4, 59.6, 725.0, 11_045.0].map(clock), ["0:00", "1:00", "12:05", "3:04:05"]);
        assert_eq!((clock(f64::INFINITY), clock(f64::NAN)), ("?".into(), "?".into()));
    }
}
