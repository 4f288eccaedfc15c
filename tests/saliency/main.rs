//! Saliency scores: against PyTorch (`torch.rs`), against differences of gradients (`derivatives.rs`), on f32 backends
//! (`backends.rs`), and what images and weights they are taken of (`samples.rs`).
#![allow(clippy::neg_cmp_op_on_partial_ord)] // so that NaN fails

mod backends;
mod derivatives;
mod samples;
mod torch;

use sparse_engine::graph::{Graph, NodeId};
use sparse_engine::rng::{Purpose, Stream};

type Lists = Vec<Vec<f64>>;

fn normal(seed: u64, name: &str, len: usize) -> Vec<f64> {
    let stream = Stream::new(seed, Purpose::Data, name);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

/// `n` images for `graph`, noise.
fn images(graph: &Graph, seed: u64, n: usize) -> Vec<f32> {
    let (c, h, w) = graph.nodes()[0].chw;
    normal(seed, "images", n * (c * h * w) as usize).into_iter().map(|v| v as f32).collect()
}

/// Initial values that an f32 backend holds exactly; scales and shifts away from 1 and 0.
fn values(graph: &Graph, seed: u64) -> Lists {
    let of_param = |(i, p): (usize, &sparse_engine::graph::Param)| {
        let noise = normal(seed, &p.name, p.size());
        let spread = if p.maskable { 0.0 } else { 0.2 };
        let start = graph.init_values(i, None, seed);
        start.iter().zip(noise).map(|(v, z)| f64::from((v + spread * z) as f32)).collect()
    };
    graph.params().iter().enumerate().map(of_param).collect()
}

/// Two kinds of max pools; a 1x1 convolution. The network `Vgg` of scripts/make_saliency_fixture.py.
fn small_vgg() -> Graph {
    let mut g = Graph::new(3, 10, 10);
    let block = |g: &mut Graph, i: usize, x: NodeId, k: usize, r: usize| {
        let x = g.conv(&format!("conv{i}"), x, k, r, 1, r / 2).unwrap();
        let x = g.norm(&format!("bn{i}"), x);
        g.relu(x)
    };
    let x = g.input();
    let x = block(&mut g, 0, x, 5, 3);
    let x = g.max_pool(x, 3, 2, 1).unwrap();
    let x = block(&mut g, 1, x, 6, 3);
    let x = g.max_pool(x, 2, 2, 0).unwrap();
    let x = block(&mut g, 2, x, 9, 1);
    let x = block(&mut g, 3, x, 7, 3);
    let x = g.pool(x);
    g.linear("fc", x, 4).unwrap();
    g
}

/// Weights a tensor among the `density` highest of all.
fn kept(scores: &Lists, density: f64) -> Vec<usize> {
    let mut all: Vec<(f64, usize)> =
        scores.iter().enumerate().flat_map(|(i, list)| list.iter().map(move |&s| (s, i))).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut counts = vec![0; scores.len()];
    all[..(density * all.len() as f64).round() as usize].iter().for_each(|&(_, i)| counts[i] += 1);
    counts
}

/// Every score of every tensor within `tol` of the tensor's largest, and of itself where it is not tiny beside that.
fn close(what: &str, got: &Lists, want: &Lists, tol: f64) {
    assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), want.iter().map(Vec::len).collect::<Vec<_>>(), "{what}");
    for (tensor, (got, want)) in got.iter().zip(want).enumerate() {
        let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        assert!(largest > 0.0, "{what}: tensor {tensor} has scores");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let limit = tol * if w.abs() > 1e-3 * largest { w.abs() } else { largest };
            assert!(
                (g - w).abs() <= limit,
                "{what}: tensor {tensor}, weight {i}: got {g:e}, wanted {w:e} +- {limit:e}"
            );
        }
    }
}
