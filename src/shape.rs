//! The letters N C H W K R S P Q, once: images N, input channels C, height H, width W, output channels K,
//! kernel rows R and columns S, output rows P and columns Q.
//! And the blocks that masks are made of, the names of the networks, and who has weight decay.

use std::fmt;
use std::str::FromStr;

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
}

/// The blocks of a weight tensor that a mask keeps or prunes as a whole: `r` output channels x `c` input channels at
/// one kernel tap. A linear layer has one tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockShape {
    /// Output channels of a block.
    pub r: u32,
    /// Input channels of a block.
    pub c: u32,
}

impl BlockShape {
    /// Longest side of a block.
    pub const MAX_SIDE: u32 = 4096;

    /// Weights of a block.
    pub fn weights(self) -> usize {
        self.r as usize * self.c as usize
    }

    /// Block rows K / r, block columns C / c and taps of a weight of shape K,C,R,S or out,in; `None` where the channels
    /// do not divide, or it has no input channels.
    pub fn grid(self, shape: &[usize]) -> Option<[usize; 3]> {
        let ([k, c, taps @ ..], r, w) = (shape, self.r as usize, self.c as usize) else { return None };
        let divides = r > 0 && w > 0 && k % r == 0 && c % w == 0;
        divides.then(|| [k / r, c / w, taps.iter().product()])
    }

    /// The blocks that strictly ascending positions of the flattened weight consist of: indices (block row * block
    /// columns + block column) * taps + tap, ascending. `None` if they are not whole blocks, each all there.
    pub fn blocks(self, shape: &[usize], kept: &[u32]) -> Option<Vec<u32>> {
        let [rows, cols, taps] = self.grid(shape)?;
        let (size, inputs) = (shape.iter().product::<usize>(), cols * self.c as usize);
        let inside = kept.last().is_none_or(|&last| (last as usize) < size);
        if size == 0 || !inside || !kept.len().is_multiple_of(self.weights()) || !kept.is_sorted_by(|a, b| a < b) {
            return None;
        }
        let mut found = vec![0u32; rows * cols * taps];
        for position in kept.iter().map(|&p| p as usize) {
            let (tap, channel, k) = (position % taps, position / taps % inputs, position / taps / inputs);
            found[(k / self.r as usize * cols + channel / self.c as usize) * taps + tap] += 1;
        }
        let whole = found.iter().all(|&n| n == 0 || n as usize == self.weights());
        whole.then(|| (0u32..).zip(&found).filter(|(_, n)| **n > 0).map(|(block, _)| block).collect())
    }
}

impl fmt::Display for BlockShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.r, self.c)
    }
}

/// Largest stride: data gradients have a class of pixels for each pair of residues.
pub const MAX_STRIDE: u32 = 64;

/// Widest first segment of a network: keeps every size far from overflow.
pub const MAX_WIDTH: usize = 1024;

/// A network as its name says it. Parsed here, because a configuration is checked where no network can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// ResNet for small images, "resnetN" or "cifar-resnetN": N = 6D+2 (paper section 2.1). Where a large network has the
    /// shorter name (resnet50, resnet152), the small one has the longer one alone.
    CifarResnet {
        /// Depth N, from 8 to 1202.
        depth: usize,
    },
    /// ResNet for images of ImageNet's size, "resnet50", or with wider bottlenecks "wrn50-2" (paper section 2.3).
    ImagenetResnet {
        /// 18, 34, 50, 101 or 152.
        depth: usize,
        /// Factor of the bottlenecks' inner width: 1, or 2 for a Wide ResNet.
        factor: usize,
    },
    /// VGG with batch norm for small images, "vgg16" (paper section 2.2).
    Vgg {
        /// 11, 13, 16 or 19.
        depth: usize,
    },
}

const fn imagenet(depth: usize, factor: usize) -> Network {
    Network::ImagenetResnet { depth, factor }
}

/// Networks with a name of their own; of two names of one network the first counts.
const NAMED: [(&str, Network); 13] = [
    ("resnet18", imagenet(18, 1)),
    ("resnet34", imagenet(34, 1)),
    ("resnet50", imagenet(50, 1)),
    ("resnet101", imagenet(101, 1)),
    ("resnet152", imagenet(152, 1)),
    ("wrn50-2", imagenet(50, 2)),
    ("wrn101-2", imagenet(101, 2)),
    ("vgg11", Network::Vgg { depth: 11 }),
    ("vgg13", Network::Vgg { depth: 13 }),
    ("vgg16", Network::Vgg { depth: 16 }),
    ("vgg19", Network::Vgg { depth: 19 }),
    ("wide-resnet50-2", imagenet(50, 2)),
    ("wide-resnet101-2", imagenet(101, 2)),
];

impl Network {
    /// Channels of the standard network's first segment, where that is free to choose: the paper's ResNet-A-B, its B.
    pub fn standard_width(self) -> Option<usize> {
        matches!(self, Network::CifarResnet { .. }).then_some(16)
    }

    /// What to say of a width given to a network that has none.
    pub fn no_width(self) -> String {
        format!("{self} has one width only; leave width out: it belongs to the resnetN for small images")
    }
}

impl FromStr for Network {
    type Err = String;

    /// # Errors
    /// Says which names there are, in one line.
    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(&(_, network)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Ok(network);
        }
        let digits = name.strip_prefix("cifar-").unwrap_or(name).strip_prefix("resnet");
        let digits = digits.filter(|d| !d.starts_with(['0', '+']));
        let depth = digits.and_then(|d| d.parse().ok()).filter(|d: &usize| (8..=1202).contains(d) && d % 6 == 2);
        depth.map(|depth| Network::CifarResnet { depth }).ok_or_else(|| {
            let named: Vec<_> = NAMED.iter().map(|&(name, _)| name).collect();
            format!(
                "unknown model {name:?}: allowed are resnetN with N = 6D+2 from 8 to 1202 for small images (resnet8, \
                 resnet20, resnet32, resnet44, resnet56, resnet110, ...; cifar-resnetN is the same, for N = 50 and 152 \
                 too), and {}",
                named.join(", ")
            )
        })
    }
}

impl fmt::Display for Network {
    /// The name that counts, which parses back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = NAMED.iter().find(|(_, network)| network == self) {
            return f.pad(name);
        }
        match *self {
            Network::CifarResnet { depth } => {
                let short = format!("resnet{depth}");
                let taken = NAMED.iter().any(|(name, _)| *name == short);
                f.pad(&if taken { format!("cifar-{short}") } else { short })
            }
            Network::ImagenetResnet { depth, factor } => f.pad(&format!("wrn{depth}-{factor}")),
            Network::Vgg { depth } => f.pad(&format!("vgg{depth}")),
        }
    }
}

/// Parameters without weight decay. Here, as what follows, because a configuration names it and knows no network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exempt {
    /// None: every parameter decays, as in the paper's code for small images.
    #[default]
    None,
    /// Biases, and the scale and shift of every batch norm.
    ByKind,
    /// As the paper's code for ImageNet, which exempts what has "bn" in its name: the scale and shift of each batch norm but
    /// those of shortcuts, which it calls "downsample.1"; the linear layer's bias decays.
    Released,
}

/// Which fan a Kaiming-normal weight starts by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fan {
    /// As the network has it (paper sections 2.1 to 2.3: fan_in for the ResNets, fan_out for VGG).
    #[default]
    Standard,
    /// Inputs of one output, C*R*S.
    FanIn,
    /// Outputs of one input, K*R*S: the released ImageNet code's default ("classic").
    FanOut,
}

/// How masks widen the distribution that Kaiming-normal weights start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitScale {
    /// Not at all: as the dense network.
    #[default]
    None,
    /// Deviation sqrt(2 / (1 + 0.01^2)) / sqrt(fan * D) with the density D of the whole network, convolutions and linear
    /// layers alike (the released CIFAR code's `--scaled`).
    Density,
    /// Deviation sqrt(2 / (fan * d)) with the density d that each masked convolution has got (the released ImageNet code's
    /// `--scale-fan`).
    LayerDensity,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for (name, network) in NAMED {
            assert_eq!(name.parse(), Ok(network));
            assert_eq!(network.to_string().parse(), Ok(network));
            assert_eq!(network.standard_width(), None);
        }
        for depth in (8..=1202).step_by(6) {
            let small = Network::CifarResnet { depth };
            assert_eq!(format!("cifar-resnet{depth}").parse(), Ok(small));
            assert_eq!(small.to_string().parse(), Ok(small), "{small}");
            assert_eq!(small.to_string().starts_with("cifar-"), [50, 152].contains(&depth), "{small}");
            assert_eq!(small.standard_width(), Some(16));
        }
        assert_eq!("wide-resnet50-2".parse::<Network>().unwrap().to_string(), "wrn50-2");
        assert_eq!("cifar-resnet20".parse::<Network>().unwrap().to_string(), "resnet20");
        let bad = "resnet21 resnet+20 resnet020 resnet2 resnet1208 resnet resnet-20 cifar-resnet18 cifar-vgg16 vgg12 vgg wrn50 \
                   cifar-cifar-resnet20 Resnet50 resnet50-2";
        for name in bad.split_whitespace().chain([""]) {
            let e = name.parse::<Network>().unwrap_err();
            assert!(e.contains(&format!("{name:?}")) && !e.contains('\n'), "{e}");
            assert!(NAMED.iter().all(|(known, _)| e.contains(known)) && e.contains("6D+2"), "{e}");
        }
    }
}
