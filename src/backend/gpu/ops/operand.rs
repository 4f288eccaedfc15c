//! Arguments that several kernels share: mirrors of the structs in `kernels/operand.cuh`. Addresses are device addresses.

/// An operand computed while it is read: NHWC rows of `cp` channels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operand {
    /// The stored tensor.
    pub a: u64,
    /// [`Operand::THROUGH`]: the norm's input.
    pub b: u64,
    /// Coefficients, `cp` f32 each: none, two or three.
    pub coef: u64,
    /// What is computed.
    pub kind: u32,
    /// Whether a ReLU follows.
    pub relu: u32,
}

impl Operand {
    /// `a`.
    pub const PLAIN: u32 = 0;
    /// `a * scale + shift`.
    pub const AFFINE: u32 = 1;
    /// `a * k0 + b * k1 + k2`: the gradient of a batch norm's input.
    pub const THROUGH: u32 = 2;
}

/// Sums for one batch norm.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reduce {
    /// The norm's input; 0: nothing to do.
    pub x: u64,
    /// Batch mean, `cp` f32.
    pub mean: u64,
    /// Pairs of f32, `[row blocks][cp]`, overwritten.
    pub partials: u64,
}

/// What the last writer of a gradient does to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Finish {
    /// The gradient.
    pub dx: u64,
    /// It passes where this is positive.
    pub mask: Operand,
    /// Sums of what was stored.
    pub reduce: [Reduce; 2],
    /// Whether to add to the old content.
    pub accumulate: u32,
    /// Whether there is a mask.
    pub has_mask: u32,
}

const _: () = assert!(size_of::<Operand>() == 32 && size_of::<Finish>() == 96);

/// What a tensor's numbers are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Size of one.
    pub fn bytes(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }

    /// One of three kernel names: for f32, f16 and bf16.
    pub(super) fn pick(self, names: [&'static str; 3]) -> &'static str {
        names[self as usize]
    }
}

/// What a run computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 everywhere, no tensor cores: slow, the others' reference.
    F32,
    /// Tensors of f32; convolutions round their operands to 10 bits of mantissa.
    Tf32,
    /// Tensors of f16, sums and weights of f32.
    F16,
    /// Tensors of bfloat16, sums and weights of f32.
    Bf16,
}

impl Precision {
    /// What tensors are stored as.
    pub fn element(self) -> Element {
        match self {
            Precision::F32 | Precision::Tf32 => Element::F32,
            Precision::F16 => Element::F16,
            Precision::Bf16 => Element::Bf16,
        }
    }

    /// One of four kernel names: for f32, tf32, f16 and bf16.
    pub(super) fn pick(self, names: [&'static str; 4]) -> &'static str {
        names[self as usize]
    }
}

/// Channels with padding: kernels work on groups of 8.
pub fn padded(channels: u32) -> u32 {
    channels.next_multiple_of(8)
}

/// Rows that one block of a finishing or statistics kernel takes: the partial sums have one place a block and channel.
pub const BLOCK_ROWS: u64 = 128;
