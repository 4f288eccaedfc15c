//! Patches: zero outside of the image, for every place of the window, whatever lay there.

use super::super::source::{Kind, Source, Window, fill};
use super::guard::{Flush, Guarded};
use super::*;

#[test]
fn patches_are_zero_outside_of_the_image_and_computed_inside() {
    for (image, flush) in [[3, 1, 1], [2, 3, 4], [3, 5, 2]].into_iter().flat_map(|i| Flush::BOTH.map(|f| (i, f))) {
        let [t, x] = [1, 2].map(|seed| Tensor::noise(seed, image, flush));
        let nan = Tensor::new(image, flush);
        let coef2: Vec<[f32; 2]> = noise(3, 2 * image[0]).chunks(2).map(|c| [c[0], c[1]]).collect();
        let coef3: Vec<[f32; 3]> = noise(4, 3 * image[0]).chunks(3).map(|c| [c[0], c[1], c[2]]).collect();
        let kinds = [
            ("plain", Kind::Plain),
            ("relu", Kind::Relu),
            ("affine", Kind::Affine { coef: &coef2, relu: false }),
            ("affine, relu", Kind::Affine { coef: &coef2, relu: true }),
            ("back", Kind::Back { x: x.view, coef: &coef3 }),
        ];
        let windows = [[1, 1], [2, 3], [7, 5], [3, 7]];
        for (isa, [rows, cols]) in sets().flat_map(|isa| windows.map(|w| (isa, w))) {
            let mut patch = Patch::new(image[0], rows, cols, flush);
            for row in -(rows as isize) - 2..=image[1] as isize + 2 {
                for col in -(cols as isize) - 2..=image[2] as isize + 2 {
                    let window = Window { row, col, rows, cols };
                    for (name, kind) in kinds {
                        for channels in [0..image[0], image[0] - 1..image[0]] {
                            let first = channels.start;
                            patch.fill(isa, Source { t: t.view, kind }, window, channels);
                            patch.check(format_args!("{isa:?} {image:?} {name}"), image, window, first, |i| {
                                value(kind, i / LANES / (image[1] * image[2]), [&t, &x].map(|t| get(t, i)))
                            });
                        }
                    }
                    // Whatever the image holds, it stays inside.
                    patch.fill(
                        isa,
                        Source { t: nan.view, kind: kinds[(row + col).rem_euclid(2) as usize].1 },
                        window,
                        0..1,
                    );
                    patch.check(format_args!("{isa:?} {image:?} NaN"), image, window, 0, |_| (f64::NAN, 0.0));
                }
            }
        }
    }
}

fn get(t: &Tensor, i: usize) -> f64 {
    // SAFETY: inside the tensor.
    f64::from(unsafe { *t.place(i) })
}

/// Value of a pixel and the magnitude of its terms.
fn value(kind: Kind, ch: usize, [t, x]: [f64; 2]) -> (f64, f64) {
    let [a, b] = match kind {
        Kind::Affine { coef, .. } => coef[ch].map(f64::from),
        _ => [1.0, 0.0],
    };
    let sum = match kind {
        Kind::Back { coef, .. } => {
            let [a, b, c] = coef[ch].map(f64::from);
            return (t * a + x * b + c, (t * a).abs() + (x * b).abs() + c.abs());
        }
        _ => t * a + b,
    };
    let relu = matches!(kind, Kind::Relu | Kind::Affine { relu: true, .. });
    (if relu { sum.max(0.0) } else { sum }, (t * a).abs() + b.abs())
}

/// `[channels][rows][cols][16]` with a pixel between rows and one between channels.
struct Patch {
    data: Guarded<f32>,
    chan: usize,
    row: usize,
    channels: usize,
    /// Channels before those that were filled last.
    skipped: usize,
}

/// A NaN that no computation makes.
const POISON: u32 = 0x7fc0_dead;

impl Patch {
    fn new(channels: usize, rows: usize, cols: usize, flush: Flush) -> Self {
        let row = (cols + 1) * LANES;
        let chan = rows * row + LANES;
        let len = (channels - 1) * chan + (rows - 1) * row + cols * LANES;
        Patch { data: Guarded::new(flush, &vec![0.0; len]), chan, row, channels, skipped: 0 }
    }

    /// Fills the first channels over poison; where they are not all, the patch begins later, so as to end at its end.
    fn fill(&mut self, isa: Isa, source: Source, window: Window, channels: std::ops::Range<usize>) {
        self.data.fill(f32::from_bits(POISON));
        self.skipped = self.channels - channels.len();
        let at = self.skipped * self.chan;
        // SAFETY: the patch has room for the window; `isa` is available.
        unsafe { fill(isa, source, 0, channels, window, self.data.as_mut_ptr().add(at), self.chan, self.row) }
    }

    /// `want(i)`: value and magnitude of number `i` of the image; channel 0 of what was filled is its channel `first`.
    fn check(
        &self,
        what: std::fmt::Arguments,
        [_, h, w]: [usize; 3],
        window: Window,
        first: usize,
        want: impl Fn(usize) -> (f64, f64),
    ) {
        let skipped = self.skipped;
        for (i, got) in self.data.iter().enumerate() {
            let (ch, row, col) = (i / self.chan, i % self.chan / self.row, i % self.chan % self.row / LANES);
            let what = || format!("{what} {window:?} channel {ch} row {row} col {col}");
            if ch < skipped || row >= window.rows || col >= window.cols {
                assert!(got.to_bits() == POISON, "{}: {got} written beside the window", what());
                continue;
            }
            let (y, x) = (window.row + row as isize, window.col + col as isize);
            if !(0..h as isize).contains(&y) || !(0..w as isize).contains(&x) {
                assert!(got.to_bits() == 0, "{}: {got} outside of the image", what());
                continue;
            }
            let at = (((first + ch - skipped) * h + y as usize) * w + x as usize) * LANES + i % LANES;
            let (want, mag) = want(at);
            if want.is_nan() {
                assert!(got.is_nan() && got.to_bits() != POISON, "{}: {got}, wanted the image's NaN", what());
            } else {
                let err = (f64::from(*got) - want).abs();
                assert!(err <= 1e-6 * mag, "{}: got {got}, want {want}", what());
            }
        }
    }
}
