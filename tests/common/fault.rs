//! The faults that `broken.rs` plants.

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// The weight gradient leaves out the last image.
    WeightDropsLastImage,
    /// The weight gradient takes all images there is room for, whatever lies behind the last one.
    WeightReadsWholeBatch,
    /// Overwriting the data gradient adds.
    OverwriteAdds,
    /// Accumulating the data gradient overwrites.
    AccumulateOverwrites,
    /// A relative error of 1e-5 in a convolution's output.
    ForwardImprecise,
    /// The bias reaches the first image only.
    BiasOnce,
    /// Padding holds the batch norm of zero.
    PaddingNormalised,
    /// A batch norm read by a convolution is not rectified.
    ReluSkipped,
    /// Statistics of a convolution's output leave out the last image.
    StatsDropLastImage,
    /// The running variance takes the biased variance.
    RunningVarianceBiased,
    /// Evaluation statistics change.
    RunningMoves,
    /// The old coefficients stay.
    RunningIgnored,
    /// Finishing a gradient ignores the mask.
    MaskSkipped,
    /// The mask is that of the stored tensor, not of its batch norm.
    MaskOfStored,
    /// The sums are those of what is added, not of the sum.
    ReducedBeforeAdded,
    /// The sums are those of the gradient before its mask.
    ReducedBeforeMasked,
    /// Only the first of two batch norms gets its sums.
    SecondReduceSkipped,
    /// The gradient through a batch norm leaves out its xhat term.
    AffineWithoutXhat,
    /// The second operand of a join is left out if it is the first one's tensor.
    JoinForgetsTwin,
    /// Pooling's gradient is the mean over one pixel too many.
    PoolScale,
    /// Among equals the last one gets the maximum's gradient.
    MaxTiesToLast,
    /// A window's padding competes as zero.
    MaxPadsZero,
    /// ReLU turns NaN into zero, as a plain maximum does.
    ReluSwallowsNan,
    /// The loss ignores the smoothing.
    NoSmoothing,
    /// The gradient is that of the summed loss.
    SummedLoss,
    /// SGD without the look-ahead.
    NoNesterov,
    /// SGD decays what is exempt.
    ExemptDecays,
    /// The gradient through a batch norm with running statistics is that of batch statistics.
    FrozenAsBatch,
    /// The data gradient alone takes the weights' gradient too.
    DataWritesWeights,
    /// SGD writes the decayed gradient back.
    DecayedGradient,
    /// The kernels' copy of the values is made by `write_store` and not renewed by `sgd`.
    StaleCopy,
}
