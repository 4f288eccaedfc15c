//! SNIP through a backend against f64; weights for scoring only; what is refused.

use super::{Lists, images, kept, small_vgg, values};
use sparse_engine::Error;
use sparse_engine::backend::Backend;
use sparse_engine::backend::Store;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::backend::reference::RefBackend;
use sparse_engine::graph::{Graph, Net};
use sparse_engine::models;
use sparse_engine::saliency::{Batch, ScoreNet, snip, xavier};
use sparse_engine::sparsity::{Density, Draw, Ratio, draw_masks};

fn cpu(graph: &Graph, batch: usize, threads: usize) -> Net<CpuBackend> {
    Net::new(graph, &[], batch, |spec| CpuBackend::new(spec, threads)).unwrap()
}

#[test]
fn f32_keeps_the_counts_of_f64() {
    let graph = models::resnet(20, 16, 3, 10, 16).unwrap();
    let labels: Vec<u32> = (0..32).map(|i| i * 7 % 10).collect();
    let images = images(&graph, 1, labels.len());
    let batch = Batch { images: &images, labels: &labels };
    let mut values = values(&graph, 1);
    for what in ["initial values", "xavier"] {
        let got = snip(&mut cpu(&graph, 32, 2), &graph, &values, batch).unwrap();
        let want = ScoreNet::new(&graph, &values, 2).unwrap().snip(batch).unwrap();
        for density in [0.05, 0.1, 0.5] {
            for (tensor, (got, want)) in kept(&got, density).into_iter().zip(kept(&want, density)).enumerate() {
                let slack = (0.002 * want as f64).max(2.0);
                let off = got.abs_diff(want) as f64;
                assert!(off <= slack, "{what}, density {density}, tensor {tensor}: {got}, wanted {want} +- {slack}");
            }
        }
        xavier(&graph, &mut values, 1);
        values.iter_mut().flatten().for_each(|v| *v = f64::from(*v as f32));
    }
}

#[test]
fn a_second_score_is_the_first_and_threads_change_no_bit() {
    let graph = small_vgg();
    let labels = [3, 1, 0, 2, 1];
    let (values, images) = (values(&graph, 2), images(&graph, 2, 5));
    let batch = Batch { images: &images, labels: &labels };
    let mut net = cpu(&graph, 8, 1);
    // What a network held before has no influence.
    net.init(&graph, 77);
    let nan = vec![f32::NAN; net.backend().spec().stored()];
    net.backend_mut().write_store(Store::Grads, &nan);
    net.backend_mut().write_store(Store::Momentum, &nan);
    let first = snip(&mut net, &graph, &values, batch).unwrap();
    assert_eq!(snip(&mut net, &graph, &values, batch).unwrap(), first);
    assert_eq!(snip(&mut cpu(&graph, 5, 3), &graph, &values, batch).unwrap(), first);
}

#[test]
fn xavier_draws_weights_and_nothing_else() {
    let graph = models::resnet(14, 16, 3, 10, 8).unwrap();
    let before = values(&graph, 5);
    let draw = |seed: u64| {
        let mut drawn = before.clone();
        xavier(&graph, &mut drawn, seed);
        drawn
    };
    let drawn = draw(1);
    assert_eq!(drawn, draw(1));
    for (i, p) in graph.params().iter().enumerate() {
        if !p.maskable {
            assert_eq!(drawn[i], before[i], "{}", p.name);
            continue;
        }
        assert_ne!(drawn[i], draw(2)[i], "{}: another seed", p.name);
        let area: usize = p.shape[2..].iter().product();
        let want = (2.0 / (p.shape[0] * area + p.shape[1] * area) as f64).sqrt();
        let n = drawn[i].len() as f64;
        let std = (drawn[i].iter().map(|v| v * v).sum::<f64>() / n).sqrt();
        assert!((std / want - 1.0).abs() <= 4.0 / (2.0 * n).sqrt(), "{}: {std}, wanted {want}", p.name);
        // Not the initial values in another scale.
        let start = graph.init_values(i, None, 1);
        let product: f64 = start.iter().zip(&drawn[i]).map(|(a, b)| a * b).sum();
        let lengths = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let cosine = product / (lengths(&start) * lengths(&drawn[i]));
        assert!(cosine.abs() <= 4.0 / n.sqrt(), "{}: cosine {cosine}", p.name);
    }
}

fn refused<T>(result: Result<T, Error>, code: u8, words: &[&str]) {
    let Err(e) = result else { panic!("wanted an error with {words:?}") };
    let said = e.to_string();
    assert_eq!(e.exit_code(), code, "{said}");
    assert!(!said.contains('\n') && words.iter().all(|word| said.contains(word)), "{said}: wanted {words:?}");
}

#[test]
fn bad_input_is_refused() {
    let graph = small_vgg();
    let (good, labels) = (values(&graph, 2), [3, 1, 0, 2, 1]);
    let images = images(&graph, 2, 5);
    let batch = Batch { images: &images, labels: &labels };
    let net = |values: &'static Lists| ScoreNet::new(Box::leak(Box::new(small_vgg())), values, 1);
    let leak = |values: Lists| -> &'static Lists { Box::leak(Box::new(values)) };
    let both = |values: Lists, batch: Batch, code: u8, words: &[&str]| {
        refused(snip(&mut cpu(&graph, 5, 1), &graph, &values, batch), code, words);
        refused(net(leak(values)).and_then(|net| net.snip(batch)), code, words);
    };
    both(good[1..].to_vec(), batch, 2, &["wanted 14 parameters", "got 13"]);
    let mut short = good.clone();
    short[3].pop();
    both(short, batch, 2, &["conv1.weight", "270", "269"]);
    both(good.clone(), Batch { images: &images[1..], ..batch }, 2, &["3x10x10", "5 labels", "1499"]);
    both(good.clone(), Batch { images: &[], labels: &[] }, 2, &["0 labels"]);
    both(good.clone(), Batch { labels: &[3, 1, 4, 2, 1], ..batch }, 2, &["label is 4", "0 to 3"]);
    let mut bad_image = images.clone();
    bad_image[70] = f32::NAN;
    both(good.clone(), Batch { images: &bad_image, ..batch }, 1, &["loss", "diverges", "normalisation"]);
    let mut bad_weight = good.clone();
    bad_weight[0][0] = f64::INFINITY;
    both(bad_weight, batch, 1, &["diverges"]);

    let five = cpu(&graph, 4, 1);
    refused(snip(&mut { five }, &graph, &good, batch), 2, &["5 images", "room for 4"]);
    let masks =
        draw_masks(&graph.maskable(), &Ratio::Uniform, Density::from_sparsity(0.5).unwrap(), Draw::Exact, 1).unwrap();
    let mut sparse = Net::new(&graph, &masks, 5, |spec| Ok(RefBackend::new(spec))).unwrap();
    refused(snip(&mut sparse, &graph, &good, batch), 2, &["without masks"]);
    let mut other = cpu(&models::resnet(8, 4, 3, 4, 10).unwrap(), 5, 1);
    refused(snip(&mut other, &graph, &good, batch), 2, &["this graph"]);

    let exact = ScoreNet::new(&graph, &good, 1).unwrap();
    refused(exact.grasp(&[], 200.0), 2, &["GraSP", "none"]);
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(exact.grasp(&[batch], temperature), 2, &["temperature"]);
    }
    refused(exact.hessian_product(batch, 1.0, &good), 2, &["direction"]);
    let mut tiny = Graph::new(1, 1, 1);
    let x = tiny.input();
    let x = tiny.norm("alone", x);
    tiny.linear("fc", x, 2).unwrap();
    let one = Batch { images: &[1.0], labels: &[0] };
    let values: Lists = vec![vec![1.0], vec![0.0], vec![1.0; 2], vec![0.0; 2]];
    refused(ScoreNet::new(&tiny, &values, 1).unwrap().snip(one), 2, &["batch norm alone"]);
    refused(snip(&mut cpu(&tiny, 1, 1), &tiny, &values, one), 2, &["batch norm alone"]);
}
