//! Batch norms on the device: their states, and the table that kernels over all of them read.

use super::driver::Driver;
use super::ops::norm::{NormEntry, STATE_ROWS};
use super::ops::operand::padded;
use crate::backend::{NormId, NormSpec, Spec};
use crate::error::Result;

/// Addresses of one norm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub spec: NormSpec,
    pub cp: u32,
    /// See `ops/norm.rs`: rows of `cp` f32.
    pub state: u64,
    /// Its line of the table.
    pub entry: u64,
    pub gamma: u64,
    pub beta: u64,
    pub dgamma: u64,
    pub dbeta: u64,
}

impl Norm {
    /// Row `row` of the state.
    fn row(&self, row: u64) -> u64 {
        self.state + row * u64::from(self.cp) * 4
    }

    /// Coefficients of the forward pass.
    pub fn affine(&self) -> u64 {
        self.row(0)
    }

    pub fn mean(&self) -> u64 {
        self.row(2)
    }

    /// Coefficients of the gradient of its input.
    pub fn through(&self) -> u64 {
        self.row(5)
    }
}

/// All norms of a network.
pub(super) struct Norms<D: Driver> {
    norms: Vec<Norm>,
    table: D::Buf,
    /// Owns the states.
    _states: D::Buf,
    pub bytes: usize,
}

impl<D: Driver> Norms<D> {
    /// `values`, `grads`, `running`: addresses of the stores.
    pub fn new(driver: &D, spec: &Spec, values: u64, grads: u64, running: u64) -> Result<Self> {
        let size = |n: &NormSpec| STATE_ROWS * u64::from(padded(n.c)) * 4;
        let state_bytes = spec.norms.iter().map(size).sum::<u64>() as usize;
        let table_bytes = spec.norms.len() * size_of::<NormEntry>();
        let mut states = driver.alloc(state_bytes)?;
        driver.fill(&mut states, 0)?; // padding channels
        let mut table = driver.alloc(table_bytes)?;
        let (mut state, first_entry) = (driver.address(&states), driver.address(&table));
        let mut norms = Vec::with_capacity(spec.norms.len());
        let mut entries = Vec::with_capacity(spec.norms.len());
        for (i, n) in spec.norms.iter().enumerate() {
            let [g, b] = [n.gamma, n.beta].map(|p| spec.params[p.0 as usize].range.start as u64 * 4);
            let (gamma, beta) = (values + g, values + b);
            let entry = NormEntry {
                state,
                running: running + n.running as u64 * 4,
                gamma,
                beta,
                eps: n.eps,
                momentum: n.momentum,
                c: n.c,
                cp: padded(n.c),
            };
            norms.push(Norm {
                spec: *n,
                cp: padded(n.c),
                state,
                entry: first_entry + (i * size_of::<NormEntry>()) as u64,
                gamma,
                beta,
                dgamma: grads + g,
                dbeta: grads + b,
            });
            entries.push(entry);
            state += size(n);
        }
        driver.upload(&mut table, bytemuck::cast_slice(&entries))?;
        Ok(Norms { norms, table, _states: states, bytes: state_bytes + table_bytes })
    }

    pub fn get(&self, norm: NormId) -> Norm {
        self.norms[norm.0 as usize]
    }

    pub fn len(&self) -> usize {
        self.norms.len()
    }

    /// Most padded channels of one.
    pub fn widest(&self) -> u32 {
        self.norms.iter().map(|n| n.cp).max().unwrap_or(0)
    }

    /// Address of the table of all.
    pub fn table(&self, driver: &D) -> u64 {
        driver.address(&self.table)
    }
}
