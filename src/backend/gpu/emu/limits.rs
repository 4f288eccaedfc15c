//! What an emulated device is like.

/// In which order threads and blocks run: a kernel that needs a barrier it lacks goes wrong in one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Lowest index first.
    Ascending,
    /// Highest index first.
    Descending,
}

impl Order {
    /// Both: a test runs in each.
    pub const BOTH: [Order; 2] = [Order::Ascending, Order::Descending];
}

/// What an emulated device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors. Blocks run one after another whatever it is.
    pub sm_count: u32,
    /// Most static and dynamic shared memory of a block after [`Driver::allow_shared`].
    pub max_shared_bytes: u32,
}

impl Limits {
    /// An A100.
    pub const SM_80: Limits = Limits { capability: (8, 0), sm_count: 108, max_shared_bytes: 163 << 10 };
    /// An H100.
    pub const SM_90: Limits = Limits { capability: (9, 0), sm_count: 132, max_shared_bytes: 227 << 10 };
    /// Registers of a multiprocessor, hence most of a block.
    pub(super) const REGISTERS: u32 = 65_536;
}
