//! Effective gradient norms.

use super::{close, fixture};
use sparse_engine::metrics::GradientNorms;

#[derive(serde::Deserialize)]
pub struct Case {
    gradients: Vec<Vec<f64>>,
    layers: Vec<f64>,
    mean: f64,
    global: f64,
}

#[test]
fn equal_to_torch() {
    let case = fixture().gradient_norms;
    // As a device has them: f32, of the loss times a loss scale.
    let scale = 1024.0f64;
    let scaled: Vec<Vec<f32>> = case.gradients.iter().map(|g| g.iter().map(|v| (v * scale) as f32).collect()).collect();
    let squares = case.gradients.iter().map(|g| g.iter().map(|v| v * v).sum::<f64>());
    for (got, tolerance, what) in [
        (GradientNorms::of(case.gradients.iter().map(Vec::as_slice), 1.0), 1e-14, "f64"),
        (GradientNorms::of(scaled.iter().map(Vec::as_slice), 1.0 / scale), f64::from(f32::EPSILON), "f32, scaled"),
        (GradientNorms::from_squares(squares, 1.0), 1e-14, "squares"),
    ] {
        assert_eq!(got.layers.len(), 2);
        for (got, want) in got.layers.iter().zip(&case.layers) {
            close(*got, *want, tolerance * want, what);
        }
        close(got.mean, case.mean, tolerance * case.mean, what);
        close(got.global, case.global, tolerance * case.global, what);
        assert!(got.mean < got.global, "they are different norms");
    }
}

#[test]
fn degenerate_layers() {
    let none = GradientNorms::of(std::iter::empty::<&[f32]>(), 1.0);
    assert_eq!((none.layers.len(), none.mean, none.global), (0, 0.0, 0.0));
    let empty = GradientNorms::of([&[][..], &[2.0f32]], -1.0);
    assert_eq!((empty.layers, empty.mean, empty.global), (vec![0.0, 2.0], 1.0, 2.0));
    // Squares of these overflow and underflow in f32.
    let wide = GradientNorms::of([&[3e38f32][..], &[1e-30]], 1.0);
    assert!(wide.layers[0].is_finite() && wide.layers[1] > 0.0);
    for bad in [f32::NAN, f32::INFINITY] {
        let got = GradientNorms::of([&[1.0, bad][..], &[1.0]], 1.0);
        assert!(!got.layers[0].is_finite() && !got.mean.is_finite() && !got.global.is_finite());
        assert_eq!(got.layers[1], 1.0);
    }
}
