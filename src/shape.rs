//! The letters N C H W K R S P Q, once: images N, input channels C, height H, width W, output channels K,
//! kernel rows R and columns S, output rows P and columns Q.

/// Geometry of a square-strided, square-padded convolution on one image. A linear layer is the case
/// `H = W = R = S = P = Q = 1`. `repr(C)`: passed to kernels by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeom {
    /// Input channels C.
    pub c: u32,
    /// Input height H.
    pub h: u32,
    /// Input width W.
    pub w: u32,
    /// Output channels K.
    pub k: u32,
    /// Kernel rows R.
    pub r: u32,
    /// Kernel columns S.
    pub s: u32,
    /// Stride of both directions.
    pub stride: u32,
    /// Zero padding on all four sides.
    pub pad: u32,
}

impl ConvGeom {
    /// Output rows P.
    pub fn p(&self) -> u32 {
        (self.h + 2 * self.pad - self.r) / self.stride + 1
    }

    /// Output columns Q.
    pub fn q(&self) -> u32 {
        (self.w + 2 * self.pad - self.s) / self.stride + 1
    }

    /// Weights of the dense kernel, K*C*R*S.
    pub fn weights(&self) -> usize {
        (self.k * self.c * self.r * self.s) as usize
    }

    /// Multiply-accumulates of the dense layer for one image, padded taps counted (paper section 6: FLOPs = 2 x MAC).
    pub fn macs(&self) -> u64 {
        self.weights() as u64 * u64::from(self.p()) * u64::from(self.q())
    }

    /// Halo of zeros that reading the input in the forward pass needs around it.
    pub fn input_halo(&self) -> u32 {
        self.pad
    }

    /// Halo of zeros that the data gradient needs around the output gradient:
    /// `dx[h] = sum over r of dy[(h + pad - r) / stride]` where the division is exact.
    pub fn output_halo(&self) -> u32 {
        let side = |input: u32, kernel: u32, out: u32| {
            let low = (kernel - 1).saturating_sub(self.pad) / self.stride;
            let high = ((input - 1 + self.pad) / self.stride).saturating_sub(out - 1);
            low.max(high)
        };
        side(self.h, self.r, self.p()).max(side(self.w, self.s, self.q()))
    }
}

/// Widest first segment of a network: keeps every size far from overflow.
pub const MAX_WIDTH: usize = 1024;

/// Depth N of a network's name "resnetN": N = 6D+2 from 8 to 1202.
///
/// # Errors
/// Says which names there are.
pub fn resnet_depth(name: &str) -> Result<usize, String> {
    let digits = name.strip_prefix("resnet").filter(|d| !d.starts_with(['0', '+']));
    let depth = digits.and_then(|d| d.parse().ok()).filter(|d: &usize| (8..=1202).contains(d) && d % 6 == 2);
    depth.ok_or_else(|| {
        format!(
            "unknown model {name:?}: allowed are resnetN with N = 6D+2 from 8 to 1202 (resnet8, resnet20, resnet32, \
             resnet44, resnet56, resnet110, ...)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_halo_covers_every_read_of_the_data_gradient() {
        for (r, stride, pad, h) in
            [(3, 1, 1, 8), (3, 2, 1, 8), (3, 2, 1, 7), (1, 2, 0, 8), (1, 1, 0, 5), (7, 2, 3, 16), (5, 3, 2, 11)]
        {
            let g = ConvGeom { c: 1, h, w: h, k: 1, r, s: r, stride, pad };
            let (mut lo, mut hi) = (0i64, 0i64);
            for y in 0..i64::from(h) {
                for t in 0..i64::from(r) {
                    let v = y + i64::from(pad) - t;
                    if v.rem_euclid(i64::from(stride)) == 0 {
                        let p = v.div_euclid(i64::from(stride));
                        lo = lo.max(-p);
                        hi = hi.max(p - i64::from(g.p() - 1));
                    }
                }
            }
            assert_eq!(i64::from(g.output_halo()), lo.max(hi), "{g:?}");
        }
    }
}
