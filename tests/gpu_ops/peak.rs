//! Multiplies in registers add up.

use super::held::Held;
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::ops::operand::Precision;
use sparse_engine::backend::gpu::ops::peak::{THREADS, flops, peak, products};

on_every_device!(ones);

fn ones<D: Driver>(driver: &D) {
    for (precision, products_a_round) in
        [(Precision::F32, 1), (Precision::Tf32, 8), (Precision::F16, 16), (Precision::Bf16, 16)]
    {
        let threads = 3 * THREADS as usize;
        let out = Held::poisoned(driver, 4 * threads);
        // SAFETY: one f32 a thread, which nothing else uses.
        unsafe { peak(driver, precision, out.at(), 3, 5).unwrap() };
        let got: Vec<f32> = out.get();
        assert_eq!(got, vec![(32 * 5 * products_a_round) as f32; threads], "{precision}");
        // Each of a thread's 32 sums takes two FLOPs a product.
        assert_eq!(products(precision), products_a_round);
        assert_eq!(flops(precision), 256 * 32 * 2 * u64::from(products_a_round));
    }
}
