//! What a GPU's memory and multipliers can do at most, measured with kernels that do nothing else.

use crate::backend::gpu::Driver;
use crate::backend::gpu::ops::operand::{Element, Finish, Operand, Precision};
use crate::backend::gpu::ops::{copy, peak};
use crate::error::{Error, Result};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Each limit is looked at this often, and the best taken: noise only ever slows.
const ROUNDS: usize = 5;
/// How long a look takes at least.
const WINDOW: Duration = Duration::from_millis(20);
/// Channels of the rows that are copied.
const CHANNELS: u32 = 64;

/// How much is moved and multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of each of two buffers.
    pub bytes: usize,
    /// Blocks that multiply on each multiprocessor: 4, with 32 warps of 8 sums each, fit at once; a second wave would be uneven.
    pub blocks_an_sm: u32,
    /// Rounds of multiplies in a call.
    pub rounds: u32,
}

/// Limits of the device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuPeaks {
    /// Device.
    pub device: String,
    /// Compute capability, major and minor.
    pub capability: [i32; 2],
    /// Multiprocessors.
    pub sm_count: u32,
    /// Bytes of each buffer: beyond every cache.
    pub bytes: usize,
    /// Copying in device memory by a kernel, 10^9 bytes a second, read and written.
    pub copy_gb_s: f64,
    /// Setting device memory, 10^9 bytes a second.
    pub fill_gb_s: f64,
    /// Multiplies in registers, 10^9 FLOP a second: of tensor cores by the instruction that the convolutions use; for fp32
    /// multiply-adds without them.
    pub mma_gflops: f64,
}

/// Measures `driver`, with multiplies of `precision`.
///
/// # Errors
/// No memory, a device that fails, or a copy or a product that is wrong.
pub fn measure<D: Driver>(driver: &D, precision: Precision, sizes: Sizes) -> Result<GpuPeaks> {
    let rows = (sizes.bytes / (4 * CHANNELS as usize)).max(1);
    let bytes = rows * 4 * CHANNELS as usize;
    let (mut from, mut to) = (driver.alloc(bytes)?, driver.alloc(bytes)?);
    driver.fill(&mut from, 0x3f)?;
    driver.fill(&mut to, 0)?;
    let dy = Operand { a: driver.address(&from), kind: Operand::PLAIN, ..Operand::default() };
    let finish = Finish { dx: driver.address(&to), ..Finish::default() };
    // SAFETY: both buffers live to the end of this function, which waits, and have as many rows of as many f32.
    let copy = || unsafe { copy::copy_backward(driver, Element::F32, dy, finish, rows as u64, CHANNELS) };
    let copied = fastest(driver, copy)?;
    let mut last = [0; 4];
    driver.download_at(&to, bytes - last.len(), &mut last)?;
    if last != [0x3f; 4] {
        return Err(Error::Failed(format!("bench kernels: a copy on the device ends in {last:x?}, wanted 3f3f3f3f")));
    }
    let filled = fastest(driver, || driver.fill(&mut to, 0))?;
    let (major, minor) = driver.capability();
    Ok(GpuPeaks {
        device: driver.describe(),
        capability: [major, minor],
        sm_count: driver.sm_count(),
        bytes,
        copy_gb_s: 2e-9 * bytes as f64 / copied,
        fill_gb_s: 1e-9 * bytes as f64 / filled,
        mma_gflops: 1e-9 * multiply(driver, precision, sizes)?,
    })
}

/// FLOPs a second of multiplies in registers.
fn multiply<D: Driver>(driver: &D, precision: Precision, sizes: Sizes) -> Result<f64> {
    let (blocks, rounds) = (driver.sm_count() * sizes.blocks_an_sm, sizes.rounds);
    let threads = (blocks * peak::THREADS) as usize;
    let mut out = driver.alloc(4 * threads)?;
    driver.fill(&mut out, 0xff)?;
    let at = driver.address(&out);
    // SAFETY: the buffer lives to the end of this function, which waits, and has one f32 a thread.
    let seconds = fastest(driver, || unsafe { peak::peak(driver, precision, at, blocks, rounds) })?;
    let mut got = vec![0f32; threads];
    driver.download(&out, bytemuck::cast_slice_mut(&mut got))?;
    let wanted = (32 * rounds * peak::products(precision)) as f32; // exact: below 2^24
    if let Some(wrong) = got.into_iter().find(|&v| v != wanted) {
        return Err(Error::Failed(format!(
            "bench kernels: products of ones on the device add up to {wrong}, wanted {wanted}"
        )));
    }
    Ok((u64::from(blocks) * u64::from(rounds) * peak::flops(precision)) as f64 / seconds)
}

/// Seconds of a call, the fastest of several looks of many calls.
fn fastest<D: Driver>(driver: &D, mut start: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut look = |calls: u32| -> Result<f64> {
        driver.synchronise()?;
        let began = Instant::now();
        (0..calls).try_for_each(|_| start())?;
        driver.synchronise()?;
        Ok((began.elapsed().as_secs_f64() / f64::from(calls)).max(1e-9))
    };
    look(1)?;
    let calls = (WINDOW.as_secs_f64() / look(1)?).clamp(1.0, 1000.0) as u32;
    (0..ROUNDS).try_fold(f64::INFINITY, |best, _| Ok(best.min(look(calls)?)))
}
