//! What a run says of itself at its start and at its end.

use super::super::StartInfo;
use super::super::resumed::load;
use super::super::trainer::Trainer;
use super::Run;
use crate::backend::Backend;
use crate::config::Selection;
use crate::data;
use crate::error::{Error, Result};
use crate::report::{Engine, EpochScore, Machine, MaskInfo, Results, SUMMARY_SCHEMA, Summary};
use crate::sparsity::{Mask, mask_hash};

impl<T: Trainer> Run<'_, T> {
    pub(super) fn start_info(&self) -> StartInfo {
        let setup = self.setup;
        let flops = setup.flops().total;
        let (maskable, nnz) = setup.weights();
        StartInfo {
            model: setup.config.network(),
            device: self.trainer.net().backend().describe(),
            planned: self.planned,
            data: format!("{} ({})", setup.data.source, setup.data.kind),
            out: self.dir.path().into(),
            method: setup.config.method.to_string(),
            density_target: setup.density.value(),
            density: nnz as f64 / maskable as f64,
            params: setup.graph.param_count() as u64,
            stored: self.trainer.net().backend().spec().stored() as u64,
            maskable,
            nnz,
            pattern: setup.config.pattern.block().map(|_| setup.config.pattern.to_string()),
            in_blocks: setup.in_blocks(),
            flops_dense: flops.dense,
            flops_sparse: flops.realised,
            image: setup.data.shape,
            classes: setup.data.classes,
            train_images: setup.train.len(),
            val_images: setup.val.as_ref().map_or(0, data::Split::len),
            test_images: setup.data.test.len(),
            epochs: setup.config.epochs,
            steps_per_epoch: self.rate.steps_per_epoch,
            resumed_at_step: self.options.resume.as_ref().map(|_| self.progress.step),
        }
    }

    pub(super) fn summary(&mut self) -> Result<Summary> {
        let setup = self.setup;
        let config = &setup.config;
        let at_end = |score| EpochScore { epoch: config.epochs, score };
        // Measured at the end of the last epoch, unless the run was stopped right there.
        let test_last = match self.test {
            Some(score) => at_end(score),
            None => at_end(self.trainer.score(&setup.data.test)?),
        };
        let mut results = Results { test_last, test_at_best_val: None, test_at_best_test: None };
        match (self.progress.best, config.selection) {
            (Some(best), Selection::BestTest) => {
                results.test_at_best_test = Some(EpochScore { epoch: best.epoch, score: best.score });
            }
            (Some(best), _) => {
                let path = self.dir.best();
                let state = load(setup, &path)?.net;
                self.trainer.net_mut().load(&state).map_err(|e| Error::data(&path, e.to_string()))?;
                let score = self.trainer.score(&setup.data.test)?;
                results.test_at_best_val = Some(EpochScore { epoch: best.epoch, score });
            }
            (None, _) => {}
        }
        let (maskable, nnz) = setup.weights();
        let (steps, images) = (self.progress.step, config.epochs as f64 * setup.train.len() as f64);
        Ok(Summary {
            schema: SUMMARY_SCHEMA,
            engine: Engine::this(),
            command_line: self.options.command_line.clone(),
            run: self.dir.path().into(),
            config: config.clone(),
            data: setup.data_info(),
            masks: setup.masks.iter().map(mask_info).collect(),
            machine: Machine::this(),
            device: self.trainer.net().backend().describe(),
            threads: self.options.threads,
            params_dense: setup.graph.param_count() as u64,
            params_sparse: self.trainer.net().backend().spec().stored() as u64,
            maskable,
            nnz,
            density_target: setup.density.value(),
            density: nnz as f64 / maskable as f64,
            flops: (&setup.flops()).into(),
            bytes_dense: self.bytes_dense,
            bytes_sparse: self.trainer.net().backend().bytes(),
            epochs: config.epochs,
            steps,
            train_time_s: self.clock.train_s,
            total_time_s: self.clock.elapsed_s(),
            // No time is known where the metrics of a finished run are gone.
            images_per_s: if self.clock.train_s > 0.0 { images / self.clock.train_s } else { 0.0 },
            held_steps: self.progress.scaling.map_or(0, |s| s.held),
            results,
        })
    }
}

fn mask_info(mask: &Mask) -> MaskInfo {
    MaskInfo {
        name: mask.name.clone(),
        shape: mask.shape.clone(),
        nnz: mask.nnz(),
        block: mask.block.map(|block| block.to_string()),
        hash: mask_hash(mask),
    }
}
