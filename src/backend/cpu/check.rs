//! What the ops rely on.

use super::layout::View;
use crate::backend::{ParamId, PoolSpec, Spec};
use crate::error::{Error, Result};

pub(super) fn check_pool(p: PoolSpec, x: View, y: View) {
    let out = |len: usize| (len + 2 * p.pad as usize - p.size as usize) / p.stride as usize + 1;
    assert_eq!((y.channels(), y.rows(), y.cols()), (x.channels(), out(x.rows()), out(x.cols())), "max pool {p:?}");
}

/// What the ops rely on, beyond what `ConvPlan::new` checks.
pub(super) fn check(spec: &Spec) -> Result<()> {
    let fault = |what: String| Err(Error::Failed(format!("cpu backend: {what}")));
    if spec.batch == 0 {
        return fault("batch 0; wanted at least 1".into());
    }
    for (i, t) in spec.tensors.iter().enumerate() {
        if t.at + t.plane.room() > spec.arena {
            return fault(format!("tensor {i} {:?} lies at {}, beyond the arena of {}", t.plane, t.at, spec.arena));
        }
    }
    let mut at = 0;
    for (i, p) in spec.params.iter().enumerate() {
        if p.range.start != at || p.range.end < at || p.range.end > u32::MAX as usize {
            return fault(format!("parameter {i} lies at {:?}, wanted from {at} on", p.range));
        }
        at = p.range.end;
    }
    for (i, n) in spec.norms.iter().enumerate() {
        let fits = |p: ParamId| spec.params.get(p.0 as usize).is_some_and(|p| p.range.len() == n.c as usize);
        if !fits(n.gamma) || !fits(n.beta) || n.running + 2 * n.c as usize > spec.running() {
            return fault(format!("norm {i} of {} channels: gamma, beta or running store of another length", n.c));
        }
    }
    Ok(())
}

/// Tensors of one elementwise op.
pub(super) fn assert_same(views: &[View]) {
    assert!(views.iter().all(|v| v.plane == views[0].plane), "tensors of different shapes in one op");
}
