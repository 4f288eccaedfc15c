//! `GpuBackend` keeps the two sides in step, agrees with the CPU backend byte for byte, and hands every op it has no
//! kernel for to the host backend.

use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::backend::gpu::GpuBackend;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::{
    Backend, BatchLoss, Bytes, ConvId, Finish, Grad, GradDst, Input, Mask, NormId, Normed, ParamSpec, PoolId, SgdStep,
    Spec, Store, TensorId, Write,
};
use std::cell::RefCell;

/// A host that has stores and notes each call, arguments included.
struct Host {
    spec: Spec,
    stores: [Vec<f32>; 4],
    calls: RefCell<Vec<String>>,
}

impl Host {
    fn new(stored: usize) -> Self {
        let params = vec![ParamSpec { shape: vec![stored], kept: None, block: None, range: 0..stored }];
        let fill = |from: f32, n: usize| (0..n).map(|i| from + i as f32).collect();
        Host {
            spec: Spec { batch: 2, params, ..Spec::default() },
            stores: [fill(1.0, stored), fill(-3.0, stored), fill(0.5, stored), fill(7.0, 4)],
            calls: RefCell::default(),
        }
    }

    fn note(&self, call: String) {
        self.calls.borrow_mut().push(call);
    }
}

impl Backend for Host {
    type Real = f32;
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn describe(&self) -> String {
        "the host".into()
    }
    fn bytes(&self) -> Bytes {
        Bytes { values: 100, indices: 1, gradients: 200, momentum: 300, operand_copies: 2, activations: 3 }
    }
    fn write_tensor(&mut self, t: TensorId, n: usize, nchw: &[f32]) {
        self.note(format!("write_tensor {t:?} {n} {nchw:?}"));
    }
    fn read_tensor(&self, t: TensorId, n: usize) -> Vec<f32> {
        self.note(format!("read_tensor {t:?} {n}"));
        vec![4.5]
    }
    fn read_store(&self, store: Store) -> Vec<f32> {
        self.stores[store as usize].clone()
    }
    fn write_store(&mut self, store: Store, data: &[f32]) {
        self.stores[store as usize].copy_from_slice(data);
    }
    fn norm_stats(&mut self, norm: NormId, x: TensorId, n: usize) {
        self.note(format!("norm_stats {norm:?} {x:?} {n}"));
    }
    fn norm_running(&mut self, norm: NormId) {
        self.note(format!("norm_running {norm:?}"));
    }
    fn conv_forward(&mut self, conv: ConvId, x: Input, y: TensorId, stats: Option<NormId>, n: usize) {
        self.note(format!("conv_forward {conv:?} {x:?} {y:?} {stats:?} {n}"));
    }
    fn conv_backward(&mut self, conv: ConvId, x: Input, dy: Grad, dx: Option<GradDst>, n: usize) {
        self.note(format!("conv_backward {conv:?} {x:?} {dy:?} {dx:?} {n}"));
    }
    fn join_forward(&mut self, a: Input, b: Option<Input>, relu: bool, y: TensorId, n: usize) {
        self.note(format!("join_forward {a:?} {b:?} {relu} {y:?} {n}"));
    }
    fn copy_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.note(format!("copy_backward {dy:?} {dx:?} {n}"));
    }
    fn pool_forward(&mut self, x: Input, y: TensorId, n: usize) {
        self.note(format!("pool_forward {x:?} {y:?} {n}"));
    }
    fn pool_backward(&mut self, dy: Grad, dx: GradDst, n: usize) {
        self.note(format!("pool_backward {dy:?} {dx:?} {n}"));
    }
    fn max_pool_forward(&mut self, pool: PoolId, x: Input, y: TensorId, n: usize) {
        self.note(format!("max_pool_forward {pool:?} {x:?} {y:?} {n}"));
    }
    fn max_pool_backward(&mut self, pool: PoolId, x: Input, dy: Grad, dx: GradDst, n: usize) {
        self.note(format!("max_pool_backward {pool:?} {x:?} {dy:?} {dx:?} {n}"));
    }
    fn cross_entropy(&mut self, x: TensorId, labels: &[u32], s: f64, dx: Option<TensorId>, n: usize) -> BatchLoss {
        self.note(format!("cross_entropy {x:?} {labels:?} {s} {dx:?} {n}"));
        BatchLoss { loss_sum: 2.25, correct: 1 }
    }
    fn sgd(&mut self, _: SgdStep) {
        panic!("the step belongs to the device");
    }
}

fn gpu(stored: usize) -> GpuBackend<Emulated, Host> {
    GpuBackend::new(Emulated::new(Order::Ascending).unwrap(), Host::new(stored)).unwrap()
}

const STEP: SgdStep = SgdStep { lr: 0.5, momentum: 0.5, weight_decay: 0.25, nesterov: false };

/// Factors and values are small dyadic numbers: every result is exact.
fn exact(v: f32, g: f32, m: f32) -> (f32, f32) {
    let m = 0.5 * m + (g + 0.25 * v);
    (v - 0.5 * m, m)
}

#[test]
fn a_step_updates_values_on_both_sides_and_momentum_on_the_device() {
    let mut b = gpu(11);
    let mut want: Vec<(f32, f32)> = (0..11).map(|i| (1.0 + i as f32, 0.5 + i as f32)).collect();
    for turn in 0..3 {
        let grads: Vec<f32> = (0..11).map(|i| (i * turn) as f32 - 3.0).collect();
        b.write_store(Store::Grads, &grads);
        assert_eq!(b.read_store(Store::Grads), grads);
        b.sgd(STEP);
        for (w, g) in want.iter_mut().zip(&grads) {
            *w = exact(w.0, *g, w.1);
        }
        assert_eq!(b.read_store(Store::Values), want.iter().map(|w| w.0).collect::<Vec<_>>(), "turn {turn}");
        assert_eq!(b.read_store(Store::Momentum), want.iter().map(|w| w.1).collect::<Vec<_>>(), "turn {turn}");
    }
}

/// The decision behind the kernel's separately rounded operations.
#[test]
fn the_same_bytes_as_the_cpu_backend() {
    for order in Order::BOTH {
        for nesterov in [false, true] {
            let stored = 40_003;
            let spec = || Spec { batch: 1, ..Host::new(stored).spec };
            let mut cpu = CpuBackend::new(spec(), 2).unwrap();
            let host = CpuBackend::new(spec(), 1).unwrap();
            let mut gpu = GpuBackend::new(Emulated::new(order).unwrap(), host).unwrap();
            let wave = |k: f32| (0..stored).map(|i| (i as f32 * k).sin() / (1 + i % 13) as f32).collect::<Vec<_>>();
            let step = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov };
            for b in [&mut cpu as &mut dyn Backend<Real = f32>, &mut gpu] {
                b.write_store(Store::Values, &wave(0.37));
                for turn in 0..5 {
                    b.write_store(Store::Grads, &wave(1.1 + turn as f32));
                    b.sgd(step);
                }
            }
            for store in [Store::Values, Store::Momentum] {
                let bits = |b: &dyn Backend<Real = f32>| b.read_store(store).iter().map(|v| v.to_bits()).collect();
                let [want, got]: [Vec<u32>; 2] = [bits(&cpu), bits(&gpu)];
                assert!(want.iter().any(|b| *b != 0));
                assert_eq!(got, want, "{order:?} {nesterov} {store:?}");
            }
        }
    }
}

#[test]
fn stores_written_by_the_host_reach_the_device() {
    let mut b = gpu(5);
    b.write_store(Store::Values, &[8.0; 5]);
    b.write_store(Store::Momentum, &[16.0; 5]);
    b.write_store(Store::Grads, &[2.0; 5]);
    b.write_store(Store::Running, &[9.0; 4]);
    b.sgd(STEP);
    let (v, m) = exact(8.0, 2.0, 16.0);
    assert_eq!(b.read_store(Store::Values), [v; 5]);
    assert_eq!(b.read_store(Store::Momentum), [m; 5]);
    assert_eq!(b.read_store(Store::Running), [9.0; 4]);
}

#[test]
fn nothing_stored_is_no_error() {
    let mut b = gpu(0);
    b.sgd(STEP);
    assert!(b.read_store(Store::Values).is_empty() && b.read_store(Store::Momentum).is_empty());
}

#[test]
fn bytes_count_both_sides() {
    let want = Bytes { values: 144, indices: 1, gradients: 244, momentum: 344, operand_copies: 2, activations: 3 };
    assert_eq!(gpu(11).bytes(), want);
    assert_eq!(gpu(11).describe(), "emulated gpu (sgd; other ops: the host)");
}

/// The same calls on the backend and on its host alone leave the same notes.
#[test]
fn every_other_op_is_the_hosts() {
    fn all(b: &mut impl Backend<Real = f32>) -> (Vec<f32>, BatchLoss) {
        let t = TensorId;
        let input = |i, norm| Input { t: t(i), norm: Some(NormId(norm)), relu: norm % 2 == 0 };
        let through = |i| Some(Normed { norm: NormId(i), x: t(i) });
        let grad = |i| Grad { t: t(i), norm: through(i + 40) };
        let over = |i| GradDst { t: t(i), write: Write::Overwrite, finish: Finish::default() };
        let finish = Finish { mask: Mask::Positive(input(50, 9)), reduce: [through(51), through(52)] };
        let add = |i| GradDst { t: t(i), write: Write::Accumulate, finish };
        b.write_tensor(t(1), 2, &[1.0, 2.0]);
        b.norm_stats(NormId(1), t(2), 1);
        b.norm_running(NormId(2));
        b.conv_forward(ConvId(1), input(3, 4), t(5), Some(NormId(6)), 1);
        b.conv_backward(ConvId(2), input(7, 8), grad(9), Some(add(10)), 2);
        b.conv_backward(ConvId(3), Input::plain(t(11)), Grad::plain(t(12)), None, 1);
        b.join_forward(input(13, 1), Some(input(14, 2)), false, t(15), 1);
        b.copy_backward(grad(16), over(17), 2);
        b.pool_forward(input(18, 3), t(19), 1);
        b.pool_backward(grad(20), add(21), 2);
        b.max_pool_forward(PoolId(1), input(22, 5), t(23), 1);
        b.max_pool_backward(PoolId(2), input(24, 6), grad(25), over(26), 2);
        let loss = b.cross_entropy(t(29), &[3, 4], 0.125, Some(t(30)), 2);
        (b.read_tensor(t(31), 1), loss)
    }
    let mut alone = Host::new(3);
    let want = all(&mut alone);
    let mut b = gpu(3);
    assert_eq!(all(&mut b), want);
    assert_eq!(*b.host().calls.borrow(), *alone.calls.borrow());
    assert_eq!(alone.calls.borrow().len(), 14);
}
