//! The effective gradient norm.

/// L2 norms of the gradient of the mean loss, over the kept weights of each maskable tensor (a dense network: over all of
/// them), before weight decay and momentum: the effective gradient flow of Tessera et al. 2021, which the paper plots in its
/// figure 6. Where a gradient is not finite, its layer's norm, the mean and the global norm are not either.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct GradientNorms {
    /// L2 norm of each layer, in the order given.
    pub layers: Vec<f64>,
    /// Mean of the layers' norms: the effective gradient norm. Zero of no layers.
    pub mean: f64,
    /// L2 norm over all layers together.
    pub global: f64,
}

impl GradientNorms {
    /// Of a slice of gradients a layer, of its kept weights in any order that does not change. Each gradient stands for
    /// `factor` times itself, such as 1 / loss scale, or 1 / images where the gradients are those of a sum.
    ///
    /// ```
    /// use sparse_engine::metrics::GradientNorms;
    ///
    /// let norms = GradientNorms::of([&[6.0f32, 8.0][..], &[0.0]], 0.5);
    /// assert_eq!((norms.layers, norms.mean, norms.global), (vec![5.0, 0.0], 2.5, 5.0));
    /// ```
    pub fn of<'a, T: Copy + Into<f64> + 'a>(layers: impl IntoIterator<Item = &'a [T]>, factor: f64) -> Self {
        let square = |gradient: &T| {
            let gradient: f64 = (*gradient).into();
            gradient * gradient
        };
        Self::from_squares(layers.into_iter().map(|layer| layer.iter().map(square).sum()), factor)
    }

    /// Of the sum of squares of each layer's gradients, where a device has it; `factor` as in [`GradientNorms::of`].
    pub fn from_squares(layers: impl IntoIterator<Item = f64>, factor: f64) -> Self {
        let squares: Vec<f64> = layers.into_iter().collect();
        let norm = |square: f64| factor.abs() * square.sqrt();
        let layers: Vec<f64> = squares.iter().map(|&square| norm(square)).collect();
        let mean = layers.iter().sum::<f64>() / layers.len().max(1) as f64;
        GradientNorms { mean, global: norm(squares.iter().sum()), layers }
    }
}
