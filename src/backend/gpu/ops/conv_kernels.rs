//! Names of the convolutions' kernels by tile, for f32, tf32, f16 and bf16; without tensor cores one serves all tiles.
//! `blocks`: those that leave out what lies outside of a mask's blocks.

use super::conv_plan::{Kind, Tile};
use super::operand::Precision;

/// Of a forward pass or data gradient. What a vendor does not make gathers.
pub(super) fn multiply_kernel(precision: Precision, tile: Tile, blocks: bool) -> &'static str {
    let names = match (tile.kind, blocks, tile.columns) {
        (Kind::Gather | Kind::Vendor, false, 16) => {
            ["", "conv_gather16_tf32", "conv_gather16_f16", "conv_gather16_bf16"]
        }
        (Kind::Gather | Kind::Vendor, false, 32) => {
            ["", "conv_gather32_tf32", "conv_gather32_f16", "conv_gather32_bf16"]
        }
        (Kind::Gather | Kind::Vendor, false, 64) => {
            ["", "conv_gather64_tf32", "conv_gather64_f16", "conv_gather64_bf16"]
        }
        (Kind::Gather | Kind::Vendor, false, _) => {
            ["", "conv_gather128_tf32", "conv_gather128_f16", "conv_gather128_bf16"]
        }
        (_, true, ..=32) => ["", "conv_blocks32_tf32", "conv_blocks32_f16", "conv_blocks32_bf16"],
        (_, true, 64) => ["", "conv_blocks64_tf32", "conv_blocks64_f16", "conv_blocks64_bf16"],
        (_, true, _) => ["", "conv_blocks128_tf32", "conv_blocks128_f16", "conv_blocks128_bf16"],
        (Kind::Patch, false, 16) => ["", "conv_patch16_tf32", "conv_patch16_f16", "conv_patch16_bf16"],
        (Kind::Patch, false, 32) => ["", "conv_patch32_tf32", "conv_patch32_f16", "conv_patch32_bf16"],
        (Kind::Patch, false, 64) => ["", "conv_patch64_tf32", "conv_patch64_f16", "conv_patch64_bf16"],
        (Kind::Patch, false, _) => ["", "conv_patch128_tf32", "conv_patch128_f16", "conv_patch128_bf16"],
    };
    if precision == Precision::F32 { "conv_direct_f32" } else { precision.pick(names) }
}

/// Of a weight gradient.
pub(super) fn weight_kernel(precision: Precision, tile: u32, blocks: bool) -> &'static str {
    let names = match (tile, blocks) {
        (16, false) => ["", "conv_weight16_tf32", "conv_weight16_f16", "conv_weight16_bf16"],
        (32, false) => ["", "conv_weight32_tf32", "conv_weight32_f16", "conv_weight32_bf16"],
        (64, false) => ["", "conv_weight64_tf32", "conv_weight64_f16", "conv_weight64_bf16"],
        (_, false) => ["", "conv_weight128_tf32", "conv_weight128_f16", "conv_weight128_bf16"],
        (16, true) => ["", "conv_weight_blocks16_tf32", "conv_weight_blocks16_f16", "conv_weight_blocks16_bf16"],
        (32, true) => ["", "conv_weight_blocks32_tf32", "conv_weight_blocks32_f16", "conv_weight_blocks32_bf16"],
        (64, true) => ["", "conv_weight_blocks64_tf32", "conv_weight_blocks64_f16", "conv_weight_blocks64_bf16"],
        (_, true) => ["", "conv_weight_blocks128_tf32", "conv_weight_blocks128_f16", "conv_weight_blocks128_bf16"],
    };
    if precision == Precision::F32 { "conv_weight_direct_f32" } else { precision.pick(names) }
}
