//! A mask of blocks is worth as many products as it has blocks, in all three passes: counted by the emulation.

use super::device::Device;
use sparse_engine::backend::gpu::Driver;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::ops::conv::{self, Conv, ConvPlan, Kind, Tile, WeightTile, data_tiles, forward_tiles};
use sparse_engine::backend::gpu::ops::operand::{Finish, Operand, Precision, padded};
use sparse_engine::rng::{Purpose, Stream};
use sparse_engine::shape::ConvGeom;

const IMAGES: u32 = 3;

/// Positions of all weights in blocks of 16 x 16 that `choose(block row, block column, tap)`, and how many blocks these are.
fn blocks(g: &ConvGeom, choose: impl Fn(u32, u32, u32) -> bool) -> (Vec<u32>, u64) {
    let taps = g.r * g.s;
    let chosen = |i: &u32| choose(i / (g.c * taps) / 16, i / taps % g.c / 16, i % taps);
    let kept: Vec<u32> = (0..g.weights() as u32).filter(chosen).collect();
    let blocks = kept.len() as u64 / 256;
    (kept, blocks)
}

/// Products that forward pass, data gradient and weight gradient make.
fn products(g: ConvGeom, precision: Precision, plan: ConvPlan, kept: Option<&[u32]>, block: (u32, u32)) -> [u64; 3] {
    let driver = Emulated::new(Order::Ascending).unwrap();
    let mut conv = Conv::with_plan(g, precision, plan, kept, kept.map(|_| block)).unwrap();
    let mut d = Device(&driver, vec![]);
    conv.lists_at = d.at(bytemuck::cast_slice(&conv.lists.words));
    let bytes = precision.element().bytes();
    let mut zeros = |numbers: u32| d.at(&vec![0; numbers as usize * bytes]);
    let (inner, outer) = (IMAGES * g.h * g.w * padded(g.c), IMAGES * g.p() * g.q() * padded(g.k));
    let weights = padded(g.c) * padded(g.k) * g.r * g.s;
    let x = Operand { a: zeros(inner), ..Operand::default() };
    let dy = Operand { a: zeros(outer), ..Operand::default() };
    let forward = conv::Forward { x, w: zeros(weights), y: zeros(outer), ..conv::Forward::default() };
    let finish = Finish { dx: zeros(inner), ..Finish::default() };
    let data = conv::DataGradient { dy, wt: zeros(weights), finish };
    let (grads, scratch) = (d.poisoned(4 * conv.stored as usize).1, d.poisoned(conv.weight_scratch() as usize).1);
    let weight = conv::WeightGradient { x, dy, grads, scratch };
    let counted = |run: &dyn Fn()| {
        let before = driver.products();
        run();
        driver.products() - before
    };
    // SAFETY: buffers of the stated sizes, used by nothing else.
    let forward = counted(&|| unsafe { conv::forward(&driver, &conv, IMAGES, &forward) }.unwrap());
    // SAFETY: as above.
    let data = counted(&|| unsafe { conv::data_gradient(&driver, &conv, IMAGES, &data) }.unwrap());
    // SAFETY: as above.
    let weight = counted(&|| unsafe { conv::weight_gradient(&driver, &conv, IMAGES, &weight) }.unwrap());
    driver.synchronise().unwrap();
    [forward, data, weight]
}

/// Every tile, on 16 x 16 blocks of which a quarter are kept, and on none, one and all.
#[test]
fn every_pass_multiplies_the_kept_blocks_and_nothing_else() {
    // Ragged tiles of rows and columns, more than one tile of each.
    let wide = ConvGeom { c: 80, h: 7, w: 9, k: 144, r: 3, s: 3, stride: 1, pad: 1 };
    let linear = ConvGeom { c: 144, h: 1, w: 1, k: 48, r: 1, s: 1, stride: 1, pad: 0 };
    let stream = Stream::new(11, Purpose::Mask, "blocks");
    let quarter = |k: u32, c: u32, tap: u32| stream.uniform(((k * 100 + c) * 100 + tap).into()) < 0.25;
    let one = |k: u32, c: u32, tap: u32| (k, c, tap) == (1, 2, 0);
    for (n, precision) in [Precision::Tf32, Precision::F16, Precision::Bf16].into_iter().enumerate() {
        for (i, (tile, columns)) in [(16, 32), (32, 64), (64, 128), (128, 32)].into_iter().enumerate() {
            let tile_of = |columns| Tile { kind: Kind::Gather, columns };
            let splits = [1, 3][(i + n) % 2];
            for g in [wide, linear] {
                let plan = ConvPlan {
                    forward: tile_of(columns),
                    data: tile_of(columns),
                    weight: WeightTile { tile, splits },
                    ..ConvPlan::new(&g, IMAGES, precision, true)
                };
                // Numbers of k in a product; pixels that a weight gradient takes at a time, the last ones padded.
                let k = 32 / precision.element().bytes() as u64;
                let step = if tile == 16 { 4 * k } else { 2 * k };
                let pixels = u64::from(IMAGES * g.p() * g.q());
                for (name, (kept, blocks)) in [
                    ("a quarter", blocks(&g, quarter)),
                    ("one", blocks(&g, one)),
                    ("none", blocks(&g, |_, _, _| false)),
                    ("all", blocks(&g, |_, _, _| true)),
                ] {
                    // 16 channels of k; 8 x 2 products of 16 x 8 are 128 rows of 16 columns.
                    let of_block = 16 / k * 16;
                    let want = [
                        forward_tiles(&g, IMAGES) * blocks * of_block,
                        data_tiles(&g, IMAGES) * blocks * of_block,
                        pixels.div_ceil(step) * step / k * blocks * 2,
                    ];
                    let got = products(g, precision, plan, Some(&kept), (16, 16));
                    assert_eq!(got, want, "{name}, {blocks} blocks: {precision:?} {g:?} {plan:?}");
                }
            }
        }
    }
}

/// With a stride a tap reads only some of the source's pixels: a data gradient multiplies each block for these alone.
#[test]
fn strides_skip_too() {
    let g = ConvGeom { c: 32, h: 8, w: 8, k: 48, r: 3, s: 3, stride: 2, pad: 1 };
    let fourth = |k: u32, c: u32, tap: u32| (k + c + tap).is_multiple_of(4);
    let (kept, all) = blocks(&g, fourth);
    let plan = ConvPlan::new(&g, IMAGES, Precision::F16, true);
    let got = products(g, Precision::F16, plan, Some(&kept), (16, 16));
    // Each class has IMAGES * 4 * 4 pixels, one tile; its taps are those that lead from there to a pixel.
    let reaches = |tap: u32, i: u32, j: u32| (i + 1 + tap / 3).is_multiple_of(2) && (j + 1 + tap % 3).is_multiple_of(2);
    let of_class = |(i, j)| blocks(&g, |k, c, tap| fourth(k, c, tap) && reaches(tap, i, j)).1;
    let data: u64 = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().map(of_class).sum();
    assert!(0 < data && data < 4 * all);
    assert_eq!(got[..2], [forward_tiles(&g, IMAGES) * all * 16, data * 16]);
}

/// Blocks that are no whole tiles skip nothing: as many products as without a mask.
#[test]
fn small_blocks_are_multiplied_in_full() {
    let g = ConvGeom { c: 32, h: 5, w: 6, k: 64, r: 3, s: 3, stride: 1, pad: 1 };
    let plan = ConvPlan::new(&g, IMAGES, Precision::F16, false);
    let dense = products(g, Precision::F16, plan, None, (0, 0));
    for (rows, columns) in [(8, 8), (16, 8), (8, 16)] {
        let taps = g.r * g.s;
        // Few, but some in each tile: a tile without a non-zero is no part of a weight gradient.
        let kept: Vec<u32> = (0..g.weights() as u32)
            .filter(|i| (i / (g.c * taps) / rows + i / taps % g.c / columns).is_multiple_of(4))
            .collect();
        assert!(kept.len() * 3 < g.weights());
        assert_eq!(products(g, Precision::F16, plan, Some(&kept), (rows, columns)), dense, "{rows}x{columns}");
    }
}
