//! Plans as people read them.

use super::format::count;
use crate::backend::cpu::plan::{Kernel, LayerPlan, PlannedLayer};
use crate::shape::ConvGeom;

/// Input, kernel with its stride, outputs: "16x32x32 3x3/2 32".
pub(super) fn geometry(g: &ConvGeom) -> String {
    let ConvGeom { c, h, w, k, r, s, stride, .. } = g;
    format!("{c}x{h}x{w} {r}x{s}/{stride} {k}")
}

/// One word where all passes run alike, else "forward/data/weight".
pub(super) fn kernels(kernels: [Kernel; 3]) -> String {
    let [forward, data, weight] = kernels;
    if forward == data && data == weight { forward.to_string() } else { format!("{forward}/{data}/{weight}") }
}

/// Rows and columns of a patch, and how many there are: "8x32 x4".
pub(super) fn patches(plan: &LayerPlan, g: &ConvGeom) -> String {
    let [rows, columns] = plan.patch(g);
    format!("{rows}x{columns} x{}", plan.cut[0] * plan.cut[1])
}

/// What the columns of [`row`] are.
pub(super) const LEGEND: &str = "layer: input, kernel/stride, output channels\n\
    kernels: one for all passes, or forward/data gradient/weight gradient\n\
    patches: rows x columns of output pixels, x how many in a plane\n\
    channels: input/output channels a block of the sparse kernels; tile: pixels of theirs in registers, at most\n\n";

pub(super) const HEAD: [&str; 8] = ["layer", "", "weights", "density", "kernels", "patches", "channels", "tile"];

pub(super) fn row(l: &PlannedLayer) -> [String; 8] {
    let (g, plan) = (l.geom(), &l.plan);
    [
        l.layer.clone(),
        geometry(&g),
        count(l.weights as u64),
        format!("{:.4}", l.weights as f64 / g.weights() as f64),
        kernels(plan.kernels()),
        patches(plan, &g),
        format!("{}/{}", plan.channels[0], plan.channels[1]),
        plan.tile.to_string(),
    ]
}

/// What `to` does otherwise than `from`: "tile 7 -> 5, patches 8x32 x4 -> 4x32 x8".
pub(super) fn changes(from: &LayerPlan, to: &LayerPlan, g: &ConvGeom) -> String {
    let mut all = vec![];
    let mut change = |name: &str, from: String, to: String| {
        if from != to {
            all.push(format!("{name} {from} -> {to}"));
        }
    };
    change("kernels", kernels(from.kernels()), kernels(to.kernels()));
    change("patches", patches(from, g), patches(to, g));
    let blocks = |p: &LayerPlan| format!("{}/{}", p.channels[0], p.channels[1]);
    change("channels", blocks(from), blocks(to));
    change("tile", from.tile.to_string(), to.tile.to_string());
    if all.is_empty() { "-".into() } else { all.join(", ") }
}
