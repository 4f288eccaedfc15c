//! Names of precisions and loss scales.

use super::ops::operand::Precision;
use crate::error::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

impl Precision {
    /// All, the most exact first.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "fp16",
            Precision::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|p| p.to_string() == text)
            .ok_or_else(|| Error::Usage(format!("unknown precision {text:?}: allowed are fp16, bf16, tf32 and f32")))
    }
}

impl Serialize for Precision {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Precision {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Factor of the loss's gradient, which keeps small gradients out of the subnormal numbers of f16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossScale {
    /// Always this power of two.
    Static(f32),
    /// From 2^16 on: halved when a gradient overflows, whose step is left out; doubled after
    /// [`LossScale::GROWTH_INTERVAL`] good steps.
    Dynamic,
}

impl LossScale {
    /// Good steps before the scale doubles.
    pub const GROWTH_INTERVAL: u32 = 2000;
    /// First dynamic scale.
    pub const FIRST: f32 = 65536.0;

    /// What a precision needs: only f16 has too small a range for gradients.
    pub fn default_for(precision: Precision) -> Self {
        if precision == Precision::F16 { LossScale::Dynamic } else { LossScale::Static(1.0) }
    }

    /// Whether a finite loss may have gradients that are not: in f16, whose range is small, and wherever the scale grows until
    /// they do. Such a step is left out.
    pub fn overflows(self, precision: Precision) -> bool {
        precision == Precision::F16 || self == LossScale::Dynamic
    }

    /// The scale of the first step.
    pub fn first(self) -> f32 {
        match self {
            LossScale::Static(scale) => scale,
            LossScale::Dynamic => Self::FIRST,
        }
    }
}

impl fmt::Display for LossScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LossScale::Static(scale) => write!(f, "{scale}"),
            LossScale::Dynamic => f.pad("dynamic"),
        }
    }
}

impl Serialize for LossScale {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LossScale {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for LossScale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "dynamic" {
            return Ok(LossScale::Dynamic);
        }
        // A power of two changes no bit of a gradient that stays in range.
        let power = text.parse().ok().filter(|v: &f32| (1.0..=16777216.0).contains(v) && v.log2().fract() == 0.0);
        power.map(LossScale::Static).ok_or_else(|| {
            Error::Usage(format!("loss scale {text:?}: wanted \"dynamic\" or a power of two from 1 to 16777216"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for p in Precision::ALL {
            assert_eq!(p.to_string().parse::<Precision>().unwrap(), p);
        }
        assert!("f16".parse::<Precision>().unwrap_err().to_string().contains("fp16, bf16, tf32 and f32"));
        for (text, want) in
            [("dynamic", LossScale::Dynamic), ("1", LossScale::Static(1.0)), ("1024", LossScale::Static(1024.0))]
        {
            assert_eq!(text.parse::<LossScale>().unwrap(), want);
        }
        for bad in ["", "0", "-2", "3", "1e30", "nan", "inf", "0.5", "Dynamic"] {
            assert!(bad.parse::<LossScale>().is_err(), "{bad}");
        }
    }
}
