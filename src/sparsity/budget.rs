//! Densities as exact decimals, so that a budget never depends on how a decimal rounds in binary:
//! 0.9 of 5 weights pruned keeps 0.5 of a weight, which rounds to 1; in f64, (1 - 0.9) * 5 is below one half.

use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::fmt;

/// Decimal places that fit: `3 * 10^37 < 2^128`, which [`mul_div`] needs. A decimal of 17 significant digits with more
/// places is below 10^-20, less than one weight in any network.
const MAX_SCALE: u32 = 37;

/// A density in (0, 1] kept as the decimal the user wrote, so that budgets are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    /// density = numerator / 10^scale, in lowest decimal terms, `0 < numerator <= 10^scale`.
    numerator: u128,
    scale: u32,
}

impl Density {
    /// Every weight kept.
    pub const ONE: Density = Density { numerator: 1, scale: 0 };

    /// A fifth.
    pub(super) const FIFTH: Density = Density { numerator: 2, scale: 1 };

    /// From a density as written: the decimal is the shortest one that reads back as `written`.
    pub fn from_density(written: f64) -> Result<Self> {
        if !(written > 0.0 && written <= 1.0) {
            return Err(Error::Usage(format!(
                "density {written}: a density must be above 0 (nothing kept) and at most 1 (everything kept)"
            )));
        }
        let (numerator, scale) = decimal(written, "density")?;
        Ok(Density { numerator, scale })
    }

    /// From a sparsity as written: density = 1 - sparsity, exactly.
    pub fn from_sparsity(written: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&written) {
            return Err(Error::Usage(format!(
                "sparsity {written}: a sparsity must be at least 0 (everything kept) and below 1 (nothing kept)"
            )));
        }
        let (pruned, scale) = decimal(written.abs(), "sparsity")?; // abs: -0.0 is 0
        Ok(Density { numerator: 10u128.pow(scale) - pruned, scale })
    }

    /// The density that keeps `kept` of `n` weights: the shortest decimal whose [`Density::budget`] is that, of several the
    /// nearest to `kept / n`.
    ///
    /// # Errors
    /// `kept` is 0 or more than `n`.
    pub fn of_budget(kept: u64, n: u64) -> Result<Self> {
        let candidates = (0..=19).filter(|_| (1..=n).contains(&kept)).flat_map(|scale| {
            let (quotient, rest) = mul_div(u128::from(kept), 10u64.pow(scale), u128::from(n));
            let nearest = quotient + u128::from(2 * rest >= u128::from(n));
            // The one below it: of the two halves around the budget one counts.
            [nearest, nearest.saturating_sub(1)].map(|numerator| Density { numerator, scale })
        });
        let mut fitting = candidates.filter(|d| d.numerator > 0 && d.budget(n) == kept);
        fitting.next().ok_or_else(|| {
            Error::Usage(format!("{kept} of {n} weights kept: a density keeps at least one weight and at most all"))
        })
    }

    /// `k` millionths, `1 <= k <= 10^6`.
    pub(super) fn millionths(mut k: u32) -> Self {
        let mut scale = 6;
        while k.is_multiple_of(10) {
            (k, scale) = (k / 10, scale - 1);
        }
        Density { numerator: k.into(), scale }
    }

    /// Nearest f64.
    pub fn value(&self) -> f64 {
        // Parsing rounds once; numerator as f64 / 10^scale would round three times.
        format!("{}e-{}", self.numerator, self.scale).parse().unwrap_or(f64::NAN)
    }

    /// Nearest f64 to 1 - density.
    pub fn sparsity(&self) -> f64 {
        format!("{}e-{}", self.unit() - self.numerator, self.scale).parse().unwrap_or(f64::NAN)
    }

    /// round-half-up(density x n), exactly.
    pub fn budget(&self, n: u64) -> u64 {
        let (whole, part) = mul_div(self.numerator, n, self.unit());
        whole as u64 + u64::from(2 * part >= self.unit()) // whole <= n because density <= 1
    }

    /// density x n as `(whole, part)`: whole + part / [`Density::unit`], part < unit.
    pub(super) fn times(&self, n: u64) -> (u64, u128) {
        let (whole, part) = mul_div(self.numerator, n, self.unit());
        (whole as u64, part)
    }

    /// 10^scale, the denominator.
    pub(super) fn unit(&self) -> u128 {
        10u128.pow(self.scale)
    }
}

impl Ord for Density {
    fn cmp(&self, other: &Self) -> Ordering {
        let scale = self.scale.max(other.scale);
        let at_scale = |d: &Density| d.numerator * 10u128.pow(scale - d.scale); // at most 10^MAX_SCALE
        at_scale(self).cmp(&at_scale(other))
    }
}

impl PartialOrd for Density {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Density {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, places) = (self.unit(), self.scale as usize);
        match places {
            0 => write!(f, "{}", self.numerator),
            _ => write!(f, "{}.{:0places$}", self.numerator / unit, self.numerator % unit),
        }
    }
}

/// `a * n / unit` as quotient and remainder, exactly, for `a <= unit <= 10^37`: the product may need 190 bits, so it is
/// divided while it is built, a bit of `n` at a time.
pub(super) fn mul_div(a: u128, n: u64, unit: u128) -> (u128, u128) {
    let (mut quotient, mut rest) = (0u128, 0u128);
    for bit in (0..u64::BITS - n.leading_zeros()).rev() {
        rest = 2 * rest + if n >> bit & 1 == 1 { a } else { 0 };
        quotient = 2 * quotient + rest / unit;
        rest %= unit;
    }
    (quotient, rest)
}

/// The shortest decimal of a number in [0, 1] as (numerator, places).
fn decimal(written: f64, word: &str) -> Result<(u128, u32)> {
    let text = written.to_string(); // never in scientific notation
    let (whole, places) = text.split_once('.').unwrap_or((&text, ""));
    if places.len() > MAX_SCALE as usize {
        let all = if word == "density" { "no" } else { "every" };
        return Err(Error::Usage(format!(
            "{word} {written:e}: more than {MAX_SCALE} decimal places, {all} weight of any network would be kept; \
             write fewer places"
        )));
    }
    let digits =
        format!("{whole}{places}").parse().map_err(|_| Error::Usage(format!("{word} {written}: no number")))?;
    Ok((digits, places.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn density(written: f64) -> Density {
        Density::from_density(written).unwrap()
    }

    fn sparsity(written: f64) -> Density {
        Density::from_sparsity(written).unwrap()
    }

    #[test]
    fn the_written_decimal_counts_not_its_binary_neighbour() {
        assert_eq!(sparsity(0.9), density(0.1));
        assert_eq!(sparsity(0.95), density(0.05));
        assert_eq!(sparsity(0.0), Density::ONE);
        assert_eq!(sparsity(-0.0), Density::ONE);
        assert_eq!(density(1.0), Density::ONE);
        // Halves that f64 misses: (1 - 0.9) * 5 = 0.49999999999999989, 0.145 * 100 = 14.499999999999998.
        assert_eq!(sparsity(0.9).budget(5), 1);
        assert_eq!(density(0.145).budget(100), 15);
        assert_eq!(density(0.005).budget(100), 1);
        assert_eq!(density(0.005).budget(99), 0);
        assert_eq!(density(0.5).budget(3), 2);
        assert_eq!(density(1.0 / 3.0).budget(3), 1); // 0.3333333333333333
        assert_eq!(density(1.0 / 3.0).budget(30_000_000_000_000_000), 9_999_999_999_999_999);
        assert_eq!(density(0.1 + 0.2).budget(10_000_000_000_000_000), 3_000_000_000_000_000);
        assert_eq!(density(0.1 + 0.2).budget(100_000_000_000_000_000), 30_000_000_000_000_004);
        assert_eq!(sparsity(0.9999999999999999).budget(u64::MAX), 1845);
        assert_eq!(density(0.5).budget(u64::MAX), 1 << 63);
        assert_eq!(Density::ONE.budget(u64::MAX), u64::MAX);
        assert_eq!(density(0.1).budget(0), 0);
    }

    #[test]
    fn values_and_texts() {
        for written in
            [0.1, 0.05, 0.005, 1.0 / 3.0, 0.7, 0.30000000000000004, 1e-7, 1.0, f64::MIN_POSITIVE.sqrt() * 1e140]
        {
            assert_eq!(density(written).value(), written);
            assert_eq!(density(written).to_string(), written.to_string());
        }
        assert_eq!(sparsity(0.9).value(), 0.1);
        assert_eq!(sparsity(0.95).to_string(), "0.05");
        assert_eq!(sparsity(1e-20).value(), 1.0);
    }

    #[test]
    fn refused_with_the_allowed_range() {
        for bad in [0.0, -0.1, 1.0000000000000002, 90.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0] {
            let e = Density::from_density(bad).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains("above 0") && e.to_string().contains("at most 1"), "{e}");
        }
        for bad in [1.0, -0.1, 1.5, 90.0, f64::NAN, f64::INFINITY, -5e-324] {
            let e = Density::from_sparsity(bad).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains("at least 0") && e.to_string().contains("below 1"), "{e}");
        }
        assert!(Density::from_density(1e-40).unwrap_err().to_string().contains("no weight"));
        assert!(Density::from_sparsity(5e-324).unwrap_err().to_string().contains("every weight"));
    }

    #[test]
    fn ordered_by_value() {
        let mut sorted = [density(0.2), density(1e-37), Density::ONE, density(0.19999999999999998), sparsity(0.75)];
        sorted.sort();
        assert_eq!(sorted.map(|d| d.value()), [1e-37, 0.19999999999999998, 0.2, 0.25, 1.0]);
        assert_eq!((Density::FIFTH, density(0.2).cmp(&sparsity(0.8))), (density(0.2), Ordering::Equal));
        assert_eq!([0.0, 0.75, 0.997685].map(|s| sparsity(s).sparsity()), [0.0, 0.75, 0.997685]);
        for k in [1, 10, 2315, 999_999, 1_000_000] {
            assert_eq!(Density::millionths(k), density(f64::from(k) / 1e6));
        }
    }

    #[test]
    fn the_shortest_decimal_of_a_budget() {
        for (kept, n, want) in [(1, 3, 0.3), (2, 3, 0.7), (3, 3, 1.0), (27_090, 270_896, 0.1), (1, 1, 1.0), (1, 2, 0.5)]
        {
            assert_eq!(Density::of_budget(kept, n).unwrap(), density(want), "{kept} of {n}");
        }
        assert_eq!(Density::of_budget(12_345_678, 68_814_016).unwrap(), density(0.17940645));
        for (kept, n) in [(0, 5), (6, 5), (0, 0)] {
            assert_eq!(Density::of_budget(kept, n).unwrap_err().exit_code(), 2);
        }
    }

    proptest! {
        #[test]
        fn the_decimal_of_a_budget_has_that_budget(n in 1u64..1_000_000_000_000, share in 0.0..1.0f64) {
            let kept = ((share * n as f64) as u64).max(1);
            let found = Density::of_budget(kept, n).unwrap();
            prop_assert_eq!(found.budget(n), kept);
            if found.scale > 0 {
                let unit = u128::from(10u64.pow(found.scale - 1));
                for numerator in [found.numerator / 10, found.numerator / 10 + 1].into_iter().filter(|&a| a <= unit) {
                    let shorter = Density { numerator, scale: found.scale - 1 };
                    prop_assert!(shorter.budget(n) != kept, "{} is shorter than {}", shorter, found);
                }
            }
        }

        /// Against u128 arithmetic where that is wide enough.
        #[test]
        fn budget_is_round_half_up(places in 1u32..15, digits in 1u64..1_000_000_000_000_000, n in 0u64..1_000_000_000_000) {
            let unit = 10u64.pow(places);
            let digits = digits % unit;
            prop_assume!(digits > 0);
            let written: f64 = format!("{digits}e-{places}").parse().unwrap();
            let want = (2 * u128::from(digits) * u128::from(n) + u128::from(unit)) / (2 * u128::from(unit));
            prop_assert_eq!(u128::from(density(written).budget(n)), want);
            let pruned = u128::from(unit - digits);
            let want = (2 * pruned * u128::from(n) + u128::from(unit)) / (2 * u128::from(unit));
            prop_assert_eq!(u128::from(sparsity(written).budget(n)), want);
        }
    }
}
