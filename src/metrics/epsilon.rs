//! How far an adversarial perturbation may go.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A non-negative finite number as the user wrote it, a decimal ("0.03") or a fraction of decimals ("8/255").
///
/// ```
/// use sparse_engine::metrics::Epsilon;
///
/// let list = Epsilon::list("0, 2/255, 8/255")?;
/// assert_eq!((list[2].value(), list[2].to_string()), (8.0 / 255.0, "8/255".to_string()));
/// # Ok::<(), sparse_engine::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Epsilon {
    value: f64,
    text: String,
}

impl Epsilon {
    /// The number.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// A list with commas, in its order.
    ///
    /// # Errors
    /// As of one of them; an empty list or element.
    pub fn list(text: &str) -> Result<Vec<Self>> {
        text.split(',').map(str::parse).collect()
    }
}

impl FromStr for Epsilon {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let number = |part: &str| part.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((above, below)) => number(above).zip(number(below)).map(|(above, below)| above / below),
            None => number(text),
        };
        match value.filter(|v| v.is_finite() && *v >= 0.0) {
            Some(value) => Ok(Epsilon { value: value.abs(), text: text.into() }), // -0 is 0
            None => Err(Error::Usage(format!("epsilon {text:?}: wanted a number from 0 on, such as 8/255 or 0.03"))),
        }
    }
}

impl fmt::Display for Epsilon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
