//! The gradient of the images, with the statistics of the batch and with the running ones, and the parameters' gradients
//! with the latter: on the reference backend against central differences of the interpreter.

use super::gradients::{IMAGES, Tally, naive, near, network, normal, on_odd, on_random};
use super::graphs::odd;
use super::naive::Naive;
use crate::backend::{Backend, Store};
use crate::graph::Graph;

const STORES: [Store; 4] = [Store::Values, Store::Momentum, Store::Grads, Store::Running];

fn check(what: &str, g: &Graph, seed: u64, tally: &mut Tally) {
    let (mut net, start, images) = network(g, seed, true);
    let labels: Vec<u32> = (0..IMAGES as u32).map(|i| i % 3).collect();
    let specs = net.backend().spec().params.clone();
    let stores = |net: &crate::graph::Net<_>| STORES.map(|s| Backend::read_store(net.backend(), s));
    let directions = |part: &str, len: usize| normal(seed, &format!("direction {part}"), len);

    // With the statistics of the batch: what is there without the images is the same, and the images' gradient is right.
    let dinput = net.program().dinput.expect("it was wanted");
    net.forward_backward(&images, &labels, 0.1);
    let gradient = net.backend().read_tensor(dinput, IMAGES);
    let mut plain = network(g, seed, false).0;
    assert!(plain.program().dinput.is_none());
    plain.forward_backward(&images, &labels, 0.1);
    assert!(net.backend().read_store(Store::Grads) == plain.backend().read_store(Store::Grads), "{what}: parameters");
    tally.slope(&format!("{what}: images, batch"), &gradient, &images, directions("images", images.len()), |moved| {
        let (logits, _) = naive(g, &specs, &start).forward(moved, IMAGES, None);
        Naive::loss(&logits, &labels, 0.1) / IMAGES as f64
    });

    // With the running ones. The gradient of the summed loss, made from the logits by other means than the backend's.
    let running = net.backend().read_store(Store::Running);
    let given: Vec<Vec<(f64, f64)>> = (net.backend().spec().norms.iter())
        .map(|norm| {
            let (mean, var) = running[norm.running..][..2 * norm.c as usize].split_at(norm.c as usize);
            mean.iter().copied().zip(var.iter().copied()).collect()
        })
        .collect();
    let loss = |values: &[f64], images: &[f64]| {
        let (logits, _) = naive(g, &specs, values).forward(images, IMAGES, Some(&given));
        Naive::loss(&logits, &labels, 0.0)
    };
    let before = stores(&net);
    let softmax = |logits: &[f64]| -> Vec<f64> {
        let classes = logits.len() / IMAGES;
        let row = |(z, &label): (&[f64], &u32)| {
            let sum: f64 = z.iter().map(|z| z.exp()).sum();
            (0..classes).map(|c| z[c].exp() / sum - f64::from(c == label as usize)).collect::<Vec<f64>>()
        };
        logits.chunks(classes).zip(&labels).flat_map(row).collect()
    };
    let (logits, gradient) = net.input_gradient(&images, IMAGES, softmax);
    let (want, _) = naive(g, &specs, &start).forward(&images, IMAGES, Some(&given));
    logits.iter().zip(&want).for_each(|(got, want)| near(&format!("{what}: logit"), *got, *want, want.abs(), 1e-9));
    assert!(stores(&net) == before, "{what}: parameters, momentum, gradients and statistics stay");
    tally.slope(&format!("{what}: images"), &gradient, &images, directions("images", images.len()), |moved| {
        loss(&start, moved)
    });

    // One image alone has the same gradient: images do not influence each other.
    let each = images.len() / IMAGES;
    let of_first = |logits: &[f64]| softmax(&[logits, &logits.repeat(IMAGES - 1)].concat())[..logits.len()].to_vec();
    let (_, first) = net.input_gradient(&images[..each], 1, of_first);
    first.iter().zip(&gradient).for_each(|(got, want)| near(&format!("{what}: alone"), *got, *want, want.abs(), 1e-12));

    // The whole backward pass behind the same forward pass: gradients of a network whose norms are fixed.
    net.infer(&images, &labels);
    let (logits, dlogits) = (net.program().logits, net.program().dlogits);
    net.backend_mut().cross_entropy(logits, &labels, 0.0, Some(dlogits), IMAGES);
    net.backward(IMAGES);
    let gradients = net.gradients();
    assert_eq!(gradients.len(), g.params().len());
    for ((spec, param), gradient) in specs.iter().zip(g.params()).zip(&gradients) {
        assert_eq!((gradient.name, gradient.maskable), (param.name.as_str(), param.maskable));
        let of_sum: Vec<f64> = gradient.values.iter().map(|v| v * IMAGES as f64).collect();
        let direction = directions(&param.name, spec.range.len());
        tally.slope(&format!("{what}: {}", param.name), &of_sum, &start[spec.range.clone()], direction, |moved| {
            let mut all = start.clone();
            all[spec.range.clone()].copy_from_slice(moved);
            loss(&all, &images)
        });
    }
}

#[test]
fn odd_graphs() {
    on_odd(check);
}

#[test]
fn random_graphs() {
    on_random(check);
}

#[test]
fn networks() {
    let mut tally = Tally::default();
    check("resnet8", &crate::models::resnet(8, 3, 2, 4, 8).unwrap(), 1, &mut tally);
    tally.few_kinks();
}

#[test]
#[should_panic(expected = "a network made by Net::with_input_gradient")]
fn a_network_without_room_for_it() {
    let (_, g) = odd().swap_remove(0);
    let (mut net, _, images) = network(&g, 0, false);
    net.input_gradient(&images, IMAGES, <[f64]>::to_vec);
}
