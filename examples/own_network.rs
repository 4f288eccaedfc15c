//! A network of your own, trained and evaluated without the command line: a graph, random masks, the training step.
//!
//!     cargo run --release --example own_network -- [EPOCHS]
//!
//! Prints the test accuracy after each epoch; four epochs take a quarter of a minute on two cores.

use sparse_engine::backend::SgdStep;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::data::{self, Augment, Loader, PadMode};
use sparse_engine::graph::{Graph, Net};
use sparse_engine::sparsity::{Density, Draw, Ratio, draw_masks};
use sparse_engine::{Error, Result};

/// Three convolutions, one of them with a shortcut around it, for images of one channel.
fn network(rows: usize, columns: usize, classes: usize) -> Result<Graph> {
    let mut g = Graph::new(1, rows, columns);
    let x = g.input();
    let x = g.conv("stem", x, 16, 3, 2, 1)?;
    let x = g.norm("stem_norm", x);
    let x = g.relu(x);
    let y = g.conv("inner", x, 16, 3, 1, 1)?;
    let y = g.norm("inner_norm", y);
    let x = g.add(x, y)?;
    let x = g.relu(x);
    let x = g.conv("wide", x, 64, 3, 2, 1)?;
    let x = g.norm("wide_norm", x);
    let x = g.relu(x);
    let x = g.pool(x);
    g.linear("classes", x, classes)?;
    Ok(g)
}

fn main() -> Result<()> {
    let epochs = match std::env::args().nth(1) {
        None => 4,
        Some(text) => text.parse().map_err(|_| Error::Usage(format!("epochs: wanted a number, got {text:?}")))?,
    };
    let (batch, threads, seed) = (64, 2, 0);
    let data = data::open(data::BUILTIN)?;
    let graph = network(data.shape.h, data.shape.w, data.classes)?;
    let masks = draw_masks(&graph.maskable(), &Ratio::ERK, Density::from_sparsity(0.8)?, Draw::Exact, seed)?;
    let (kept, size): (usize, usize) = (masks.iter().map(|m| m.nnz()).sum(), masks.iter().map(|m| m.size()).sum());
    println!("{kept} of {size} weights are kept; no others are stored or multiplied");

    let mut net = Net::new(&graph, &masks, batch, |spec| CpuBackend::new(spec, threads))?;
    net.init(&graph, seed);
    let preprocess = data.preprocess(&data.train)?;
    let augment = Augment { pad: 0, pad_mode: PadMode::Zero, flip: true };
    let train = Loader::new(data.train.clone(), batch, preprocess.clone(), Some(augment), seed, threads)?;
    let test = Loader::new(data.test.clone(), batch, preprocess, None, seed, threads)?;
    for epoch in 0..epochs {
        let lr = if 2 * epoch < epochs { 0.1 } else { 0.01 };
        for images in train.epoch(epoch, 0) {
            let loss = net.forward_backward(&images.images, &images.labels, 0.0);
            if !loss.loss_sum.is_finite() {
                return Err(Error::Failed(format!("the loss became {}: lower lr", loss.loss_sum)));
            }
            net.sgd(SgdStep { lr, momentum: 0.9, weight_decay: 5e-4, nesterov: true });
        }
        let correct: u64 = test.epoch(0, 0).map(|images| net.infer(&images.images, &images.labels).correct).sum();
        println!("epoch {}: {:.2} % of the test images", epoch + 1, 100.0 * correct as f64 / data.test.len() as f64);
    }
    Ok(())
}
