//! Order statistics of repeated timings. Noise on a shared machine only ever adds time, so a mean says little: the median
//! tells what a user gets, the quartiles how sure that is, the minimum what the machine can do.

use serde::Serialize;

/// Minimum, quartiles and maximum of some numbers, in their unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Lower quartile.
    pub q1: f64,
    /// Median.
    pub median: f64,
    /// Upper quartile.
    pub q3: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of `numbers`, in any order; quartiles interpolate linearly between order statistics. `None` without numbers, or if
    /// one is NaN.
    pub fn of(numbers: &[f64]) -> Option<Spread> {
        if numbers.is_empty() || numbers.iter().any(|v| v.is_nan()) {
            return None;
        }
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let at = |share: f64| {
            let place = share * last as f64;
            let (low, part) = (place as usize, place.fract());
            let high = sorted[(low + 1).min(last)];
            sorted[low] + if part > 0.0 { part * (high - sorted[low]) } else { 0.0 }
        };
        Some(Spread { min: sorted[0], q1: at(0.25), median: at(0.5), q3: at(0.75), max: sorted[last] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate_and_order_does_not_matter() {
        let spread = |v: &[f64]| Spread::of(v).unwrap();
        assert_eq!(spread(&[7.0]), Spread { min: 7.0, q1: 7.0, median: 7.0, q3: 7.0, max: 7.0 });
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), Spread { min: 1.0, q1: 1.75, median: 2.5, q3: 3.25, max: 4.0 });
        assert_eq!(spread(&[5.0, 1.0, 4.0, 2.0, 3.0]), Spread { min: 1.0, q1: 2.0, median: 3.0, q3: 4.0, max: 5.0 });
    }

    #[test]
    fn nothing_and_nan_have_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
    }
}
