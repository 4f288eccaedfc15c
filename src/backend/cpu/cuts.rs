//! How a convolution's planes are cut into patches, and what of its operands each patch reads.

pub(super) use super::kernels::patch::part;
use super::layout::LANES;
use super::source::Window;
use super::structure::{ConvPlan, SHARED_ENTRIES};
use std::ops::Range;

/// Distances of channels and rows in floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strides {
    pub(super) chan: usize,
    pub(super) row: usize,
}

impl Strides {
    /// Of a patch of so many rows and columns. An odd number of pixels a channel keeps channels out of each other's cache
    /// sets.
    fn patch(rows: usize, cols: usize) -> Self {
        Strides { chan: ((rows * cols) | 1) * LANES, row: cols * LANES }
    }
}

/// Pixels of a plane: rows and columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl Rect {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() || self.cols.is_empty()
    }
}

impl ConvPlan {
    /// Sizes the patches, once the cut is known.
    pub(super) fn size_patches(&mut self) {
        let items = 0..self.items();
        let most = |windows: &dyn Fn(usize) -> Window| {
            let sizes = items.clone().map(windows).map(|w| (w.rows, w.cols));
            sizes.fold((0, 0), |m, s| (m.0.max(s.0), m.1.max(s.1)))
        };
        let whole = |r: Rect| Window { row: 0, col: 0, rows: r.rows.len(), cols: r.cols.len() };
        let (rows, cols) = most(&|i| whole(self.output_rect(i)));
        self.y_made = Strides::patch(rows, cols);
        let (rows, cols) = most(&|i| whole(self.input_rect(i)));
        self.dx_made = Strides::patch(rows, cols);
        let whole = self.is_shared().then(|| self.whole());
        let (rows, cols) = most(&|i| whole.map_or(self.input_window(&self.output_rect(i)), |w| w.0));
        self.x_patch = Strides::patch(rows, cols);
        let parts = |i| self.gradient_window(&self.output_rect(i), &self.input_rect(i));
        let (rows, cols) = most(&|i| whole.map_or(parts(i), |w| w.1));
        self.dy_patch = Strides::patch(rows, cols);
    }

    /// Patches of a plane.
    pub(super) fn items(&self) -> usize {
        self.how.cut[0] * self.how.cut[1]
    }

    fn rect(&self, item: usize, rows: u32, cols: u32) -> Rect {
        let [parts, across] = self.how.cut;
        let rows = part(rows as usize, parts, item / across);
        Rect { rows, cols: part(cols as usize, across, item % across) }
    }

    /// Output pixels of patch `item`.
    pub(super) fn output_rect(&self, item: usize) -> Rect {
        self.rect(item, self.geom.p(), self.geom.q())
    }

    /// Input pixels of patch `item`.
    pub(super) fn input_rect(&self, item: usize) -> Rect {
        self.rect(item, self.geom.h, self.geom.w)
    }

    /// Input that these outputs read.
    pub(super) fn input_window(&self, out: &Rect) -> Window {
        let g = &self.geom;
        let side = |r: &Range<usize>, kernel: u32| {
            let first = (r.start * g.stride as usize) as isize - g.pad as isize;
            (first, if r.is_empty() { 0 } else { (r.len() - 1) * g.stride as usize + kernel as usize })
        };
        let ((row, rows), (col, cols)) = (side(&out.rows, g.r), side(&out.cols, g.s));
        Window { row, col, rows, cols }
    }

    /// Output gradient that these outputs' weight gradient and these inputs' data gradient read.
    pub(super) fn gradient_window(&self, out: &Rect, input: &Rect) -> Window {
        let g = &self.geom;
        let side = |out: &Range<usize>, input: &Range<usize>| {
            let (mut first, mut end) = (out.start as isize, out.end as isize);
            if !input.is_empty() {
                let st = g.stride as usize;
                first = first.min((input.start / st) as isize - self.low_tap());
                // The highest tap is that of kernel row 0.
                let high = (g.pad as usize).div_ceil(st) as isize;
                end = end.max(((input.end - 1) / st) as isize + high + 1);
            }
            (first, (end - first) as usize)
        };
        let ((row, rows), (col, cols)) = (side(&out.rows, &input.rows), side(&out.cols, &input.cols));
        Window { row, col, rows, cols }
    }

    /// What all outputs read, and what all gradients read.
    pub(super) fn whole(&self) -> (Window, Window) {
        let g = &self.geom;
        let out = Rect { rows: 0..g.p() as usize, cols: 0..g.q() as usize };
        let input = Rect { rows: 0..g.h as usize, cols: 0..g.w as usize };
        (self.input_window(&out), self.gradient_window(&out, &input))
    }

    /// Whether all tasks of a block of images share patches of whole planes, filled beforehand: a layer of so many weights
    /// is cut by outputs too, and would fill each patch many times.
    pub(super) fn is_shared(&self) -> bool {
        self.entries() > SHARED_ENTRIES
    }

    /// Floats of the largest patches.
    pub(super) fn patch_floats(&self) -> [usize; 3] {
        let size = |s: Strides, channels: u32| s.chan * channels as usize;
        let (c, k) = (self.geom.c, self.geom.k);
        [size(self.x_patch, c), size(self.dy_patch, k), size(self.y_made, k).max(size(self.dx_made, c))]
    }
}
