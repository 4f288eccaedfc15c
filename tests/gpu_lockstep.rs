//! Whole networks on a GPU in lockstep with the CPU backend: 20 training steps, each from the CPU's state, so that errors do
//! not add up. A small residual network on the emulated device, ResNet-20 on a real GPU where there is one.

mod data_support;
mod support;

use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::{self, Driver, GpuBackend, Precision, cuda::Cuda};
use sparse_engine::backend::{Backend, SgdStep, Spec, Store};
use sparse_engine::graph::{Exempt, Graph, Net};
use sparse_engine::models;
use sparse_engine::sparsity::{Density, Draw, Mask, Pattern, Ratio, draw_patterns};
use support::{CLASSES, SIDE, images};

const STEPS: usize = 20;
const STEP: SgdStep = SgdStep { lr: 0.05, momentum: 0.9, weight_decay: 5e-4, nesterov: true };

/// Normalised images and labels of one batch; the last of the epoch is ragged.
fn batch(step: usize, size: usize, side: usize) -> (Vec<f32>, Vec<u32>) {
    let n = if step % 5 == 4 { size / 2 + 1 } else { size };
    let (pixels, labels) = images(n, 1000 + step as u64);
    let pixel = |image: usize, row: usize, column: usize| pixels[(image * SIDE + row % SIDE) * SIDE + column % SIDE];
    let cells = (0..n).flat_map(|i| (0..side).flat_map(move |r| (0..side).map(move |c| (i, r, c))));
    let numbers = cells.map(|(i, r, c)| f32::from(pixel(i, r, c)) / 64.0 - 1.5).collect();
    (numbers, labels.into_iter().map(u32::from).collect())
}

struct Lockstep {
    graph: Graph,
    masks: Vec<Mask>,
    size: usize,
    side: usize,
}

impl Lockstep {
    fn new(graph: Graph, size: usize, pattern: Pattern, sparsity: f64) -> Self {
        let density = Density::from_sparsity(sparsity).unwrap();
        let masks = draw_patterns(&graph.maskable(), &Ratio::Uniform, density, pattern, Draw::Exact, 0).unwrap();
        let side = graph.nodes()[0].chw.1 as usize;
        Lockstep { graph, masks, size, side }
    }

    fn net<B: Backend>(&self, make: impl FnOnce(Spec) -> sparse_engine::Result<B>) -> Net<B> {
        Net::new(&self.graph, &self.masks, self.size, make).unwrap()
    }

    /// Bytes of indices of the same network, every parameter with weight decay.
    fn indices_without_exemption<D: Driver>(&self, open: &impl Fn() -> D) -> u64 {
        let net = self.net(|mut spec| {
            spec.params.iter_mut().for_each(|p| p.decay = true);
            GpuBackend::new(open(), spec, Precision::F32, None)
        });
        net.backend().bytes().indices
    }

    fn run<D: Driver>(&self, open: impl Fn() -> D, precision: Precision) {
        let mut cpu = self.net(|spec| CpuBackend::new(spec, 2));
        let mut dev = self.net(|spec| GpuBackend::new(open(), spec, precision, None));
        cpu.init(&self.graph, 0);
        let (loss_tol, cosine) = if precision == Precision::F32 { (1e-4, 0.999) } else { (5e-3, 0.95) };
        let mut first = None;
        for step in 0..STEPS {
            for store in [Store::Values, Store::Momentum, Store::Running] {
                let data = cpu.backend().read_store(store);
                dev.backend_mut().write_store(store, &data);
            }
            let (images, labels) = batch(step, self.size, self.side);
            let want = cpu.forward_backward(&images, &labels, 0.1).loss_sum / labels.len() as f64;
            let got = dev.forward_backward(&images, &labels, 0.1).loss_sum / labels.len() as f64;
            assert!(
                (got - want).abs() <= loss_tol * want.max(1.0),
                "{precision}, step {step}: loss {got}, wanted {want}"
            );
            let [g, w] = [dev.backend().read_store(Store::Grads), cpu.backend().read_store(Store::Grads)];
            for (p, param) in cpu.backend().spec().params.iter().zip(self.graph.params()) {
                let (g, w) = (&g[p.range.clone()], &w[p.range.clone()]);
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                let got = dot(g, w) / (dot(g, g) * dot(w, w)).sqrt();
                let name = &param.name;
                assert!(got >= cosine, "{precision}, step {step}: gradient of {name}: cosine {got}, wanted {cosine}");
            }
            first.get_or_insert(want);
            cpu.sgd(STEP);
            if step + 1 == STEPS {
                assert!(want < 0.7 * first.unwrap(), "it learns: {first:?} to {want}");
            }
        }
    }
}

fn small(pattern: Pattern, sparsity: f64) -> Lockstep {
    Lockstep::new(models::resnet(8, 16, 1, CLASSES, 8).unwrap(), 32, pattern, sparsity)
}

fn emulated() -> Emulated {
    Emulated::new(Order::Ascending).unwrap()
}

#[test]
fn f32_emulated() {
    small(Pattern::Unstructured, 0.6).run(emulated, Precision::F32);
}

#[test]
fn f16_emulated() {
    small(Pattern::Unstructured, 0.6).run(emulated, Precision::F16);
}

#[test]
fn f16_blocks_emulated() {
    small("block:16x16".parse().unwrap(), 0.5).run(emulated, Precision::F16);
}

#[test]
fn bf16_emulated() {
    small(Pattern::Unstructured, 0.6).run(emulated, Precision::Bf16);
}

#[test]
fn tf32_emulated() {
    small(Pattern::Unstructured, 0.6).run(emulated, Precision::Tf32);
}

/// Three updates by the same numbers on two devices: the same bytes, whoever has weight decay.
fn update_alike<D: Driver>(open: impl Fn() -> D) {
    let mut ends = vec![];
    for exempt in [Exempt::None, Exempt::ByKind, Exempt::Released] {
        let mut graph = models::resnet(8, 5, 1, CLASSES, 8).unwrap();
        graph.set_weight_decay(exempt);
        let net = Lockstep::new(graph, 4, Pattern::Unstructured, 0.6);
        let mut cpu = net.net(|spec| CpuBackend::new(spec, 2));
        let mut dev = net.net(|spec| GpuBackend::new(open(), spec, Precision::F32, None));
        let extra = dev.backend().bytes().indices - net.indices_without_exemption(&open);
        let stored = cpu.backend().spec().stored();
        let bits = 4 * stored.div_ceil(32) as u64;
        assert_eq!(extra, if exempt == Exempt::None { 0 } else { bits }, "{exempt:?}: a bit a stored parameter");
        let numbers = |seed: usize| -> Vec<f32> {
            (0..stored).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 300.0 - 1.7).collect()
        };
        for step in 0..3 {
            for (i, store) in [Store::Values, Store::Momentum, Store::Grads].into_iter().enumerate() {
                if step == 0 || store == Store::Grads {
                    cpu.backend_mut().write_store(store, &numbers(3 * step + i));
                    dev.backend_mut().write_store(store, &numbers(3 * step + i));
                }
            }
            cpu.sgd(STEP);
            dev.sgd(STEP);
            for store in [Store::Values, Store::Momentum] {
                let [a, b] = [cpu.backend().read_store(store), dev.backend().read_store(store)];
                assert!(
                    a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{exempt:?}, step {step}, {store:?}"
                );
            }
        }
        ends.push(cpu.backend().read_store(Store::Values));
    }
    assert!(ends[0] != ends[1] && ends[1] != ends[2] && ends[0] != ends[2]);
}

#[test]
fn exempt_parameters_update_alike_emulated() {
    Order::BOTH.into_iter().for_each(|order| update_alike(|| Emulated::new(order).unwrap()));
}

#[test]
fn exempt_parameters_update_alike_on_a_real_gpu() {
    match gpu::probe() {
        Ok(_) => update_alike(|| Cuda::open().unwrap()),
        Err(why) => drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"))),
    }
}

#[test]
fn resnet20_on_a_real_gpu() {
    match gpu::probe() {
        Ok(_) => {
            let graph = models::resnet(20, 16, 1, CLASSES, 32).unwrap();
            let net = Lockstep::new(graph, 128, Pattern::Unstructured, 0.9);
            Precision::ALL.into_iter().for_each(|precision| net.run(|| Cuda::open().unwrap(), precision));
        }
        Err(why) => drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"))),
    }
}
