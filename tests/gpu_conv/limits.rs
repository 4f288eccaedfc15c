//! What the convolution kernels can't do is an error, and no default plan asks for it.

use super::PRECISIONS;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::ops::conv::{self, Conv, ConvPlan, Kind, Tile, WeightTile};
use sparse_engine::backend::gpu::ops::operand::Precision;
use sparse_engine::shape::ConvGeom;

const SHAPE: ConvGeom = ConvGeom { c: 16, h: 8, w: 8, k: 32, r: 3, s: 3, stride: 1, pad: 1 };

#[test]
fn what_the_kernels_cannot_do_is_an_error() {
    let plan = ConvPlan::new(&SHAPE, 4, Precision::F16, false);
    let tile = |kind, columns| Tile { kind, columns };
    let weight = |tile, splits| ConvPlan { weight: WeightTile { tile, splits }, ..plan };
    let five = ConvGeom { r: 5, s: 5, pad: 2, ..SHAPE };
    let blocks = Some((16, 16));
    for (geom, precision, plan, block, word) in [
        (ConvGeom { stride: 65, ..SHAPE }, Precision::F16, plan, None, "stride"),
        (ConvGeom { c: 0, ..SHAPE }, Precision::F16, plan, None, "size"),
        (ConvGeom { w: 8192, ..SHAPE }, Precision::F16, plan, None, "8191"),
        (ConvGeom { k: 4_194_241, ..SHAPE }, Precision::F16, plan, None, "channels are at most 4194240"),
        (ConvGeom { c: u32::MAX, ..SHAPE }, Precision::F16, plan, None, "channels are at most 4194240"),
        (
            ConvGeom { c: 4_194_240, h: 8191, w: 8191, k: 4_194_240, r: 8191, s: 8191, stride: 1, pad: 0 },
            Precision::F16,
            plan,
            None,
            "more than 2^31 weights",
        ),
        (ConvGeom { r: 11, ..SHAPE }, Precision::F16, plan, None, "larger"),
        (ConvGeom { c: 8191, k: 8191, r: 7, s: 7, pad: 3, ..SHAPE }, Precision::F16, plan, None, "weights"),
        (five, Precision::F16, ConvPlan { forward: tile(Kind::Patch, 32), ..plan }, None, "forward by patches"),
        (SHAPE, Precision::F16, ConvPlan { data: tile(Kind::Patch, 32), ..plan }, blocks, "by patches"),
        (ConvGeom { w: 63, ..SHAPE }, Precision::F16, ConvPlan { data: tile(Kind::Patch, 128), ..plan }, None, "62"),
        (SHAPE, Precision::F16, ConvPlan { data: tile(Kind::Gather, 48), ..plan }, None, "data gradient tiles"),
        (SHAPE, Precision::F32, plan, None, "tensor cores"),
        (SHAPE, Precision::F16, weight(8, 1), None, "weight gradient tiles"),
        (SHAPE, Precision::F16, weight(64, 0), None, "splits"),
        (SHAPE, Precision::F16, weight(64, 65_536), None, "splits"),
    ] {
        let kept = block.map(|_| vec![0u32]);
        let said = Conv::with_plan(geom, precision, plan, kept.as_deref(), block).unwrap_err().to_string();
        assert!(said.contains(word) && !said.contains('\n'), "{geom:?} {plan:?}: {said}");
        // Nor is a plan made for what is none.
        assert!(geom == SHAPE || geom == five || geom.w == 63 || Conv::new(geom, precision, 4, None, None).is_err());
    }
    let driver = Emulated::new(Order::Ascending).unwrap();
    let conv = Conv::with_plan(SHAPE, Precision::F16, plan, None, None).unwrap();
    for images in [0, 1 << 26] {
        // SAFETY: nothing is launched.
        let said = unsafe { conv::forward(&driver, &conv, images, &conv::Forward::default()) }.unwrap_err().to_string();
        assert!(said.contains("pixels") && !said.contains('\n'), "{said}");
    }
}

/// Default plans are possible plans, on every shape that the models have and on odd ones.
#[test]
fn default_plans_are_valid() {
    for (c, k, size) in
        [(3, 16, 32), (16, 32, 16), (64, 64, 56), (64, 256, 56), (512, 2048, 7), (2048, 1000, 1), (3, 64, 224)]
    {
        for (r, stride, pad) in [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3)] {
            let geom = ConvGeom { c, h: size, w: size, k, r, s: r, stride, pad };
            if size + 2 * pad < r {
                continue;
            }
            for (precision, batch) in PRECISIONS.into_iter().flat_map(|p| [(p, 1), (p, 128)]) {
                let conv = Conv::new(geom, precision, batch, None, None).unwrap();
                assert_eq!(conv.plan, ConvPlan::new(&geom, batch, precision, false));
                assert!(conv.lists.words.is_empty());
                if c % 16 == 0 && k % 16 == 0 {
                    let conv = Conv::new(geom, precision, batch, Some(&[0]), Some((16, 16))).unwrap();
                    assert!(!conv.lists.words.is_empty() && conv.stored == 1);
                }
            }
        }
    }
}
