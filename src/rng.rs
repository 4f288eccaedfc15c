//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011). The same numbers on every backend, for any
//! thread count and in any order of use.
//!
//! A [`Stream`] is named by a seed, a purpose and a name (a layer, an epoch): the seed is the key, the hash of purpose and
//! name the upper half of the counter, the index the lower half. Streams of different purposes never meet, so another mask
//! seed leaves initial values and batches byte-identical.

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Initial values, a stream a parameter.
    Init,
    /// Mask positions, a stream a layer.
    Mask,
    /// Data order and augmentation, a stream an epoch.
    Data,
}

/// A random-access sequence of random numbers.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    high: [u32; 2],
}

impl Stream {
    /// The stream of `seed` for `purpose` and `name`.
    pub fn new(seed: u64, purpose: Purpose, name: &str) -> Self {
        let tag: &[u8] = match purpose {
            Purpose::Init => b"init\0",
            Purpose::Mask => b"mask\0",
            Purpose::Data => b"data\0",
        };
        let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a, then a finaliser so that near names differ in all bits
        for b in tag.iter().chain(name.as_bytes()) {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^= hash >> 33;
        Stream { key: split(seed), high: split(hash) }
    }

    /// Key, then the upper half of the counter: all that a device needs to draw the same blocks.
    pub fn words(&self) -> [u32; 4] {
        [self.key[0], self.key[1], self.high[0], self.high[1]]
    }

    /// Block `index`: four random words.
    pub fn block(&self, index: u64) -> [u32; 4] {
        let low = split(index);
        philox([low[0], low[1], self.high[0], self.high[1]], self.key)
    }

    /// Word `index` as 64 random bits.
    pub fn bits(&self, index: u64) -> u64 {
        let b = self.block(index);
        u64::from(b[0]) | u64::from(b[1]) << 32
    }

    /// Number `index`, uniform in [0, 1), a multiple of 2^-53.
    pub fn uniform(&self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Number `index`, uniform integer in `0..n`, `n >= 1` (multiply-shift: bias below n * 2^-64).
    pub fn below(&self, index: u64, n: u64) -> u64 {
        ((u128::from(self.bits(index)) * u128::from(n)) >> 64) as u64
    }

    /// Number `index`, standard normal (Box-Muller of one block).
    pub fn normal(&self, index: u64) -> f64 {
        let b = self.block(index);
        let u = |lo: u32, hi: u32| ((u64::from(lo) | u64::from(hi) << 32) >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let radius = (-2.0 * (1.0 - u(b[0], b[1])).ln()).sqrt();
        radius * (std::f64::consts::TAU * u(b[2], b[3])).cos()
    }

    /// A uniformly random permutation of `0..n` (Fisher-Yates).
    pub fn permutation(&self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i as u64 + 1) as usize);
        }
        order
    }
}

fn split(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

fn philox(mut ctr: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(ctr[0]) * 0xD251_1F53;
        let b = u64::from(ctr[2]) * 0xCD9E_8D57;
        ctr = [(b >> 32) as u32 ^ ctr[1] ^ key[0], b as u32, (a >> 32) as u32 ^ ctr[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    ctr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // Random123's published known-answer vectors for philox4x32-10.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn permutation_is_one() {
        let mut p = Stream::new(1, Purpose::Data, "epoch 0").permutation(1000);
        assert_ne!(p[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        p.sort_unstable();
        assert!(p.iter().enumerate().all(|(i, &v)| i == v as usize));
    }
}
