//! `GpuBackend` keeps the two sides in step, agrees with the CPU backend byte for byte, and hands every op it has no
//! kernel for to the host backend.

use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::backend::gpu::GpuBackend;
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::{
    Backend, BatchLoss, Bytes, ConvId, Dst, NormId, ParamSpec, SgdStep, Spec, Store, TensorId, Write,
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
        let params = vec![ParamSpec { shape: vec![stored], kept: None, range: 0..stored }];
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
    fn conv_forward(&mut self, conv: ConvId, x: TensorId, y: TensorId, n: usize) {
        self.note(format!("conv_forward {conv:?} {x:?} {y:?} {n}"));
    }
    fn conv_backward_data(&mut self, conv: ConvId, dy: TensorId, dx: Dst, n: usize) {
        self.note(format!("conv_backward_data {conv:?} {dy:?} {dx:?} {n}"));
    }
    fn conv_backward_weight(&mut self, conv: ConvId, x: TensorId, dy: TensorId, n: usize) {
        self.note(format!("conv_backward_weight {conv:?} {x:?} {dy:?} {n}"));
    }
    fn norm_forward(&mut self, i: NormId, x: TensorId, r: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.note(format!("norm_forward {i:?} {x:?} {r:?} {relu} {y:?} {n}"));
    }
    fn norm_infer(&mut self, i: NormId, x: TensorId, r: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.note(format!("norm_infer {i:?} {x:?} {r:?} {relu} {y:?} {n}"));
    }
    fn norm_backward(
        &mut self,
        i: NormId,
        x: TensorId,
        y: TensorId,
        relu: bool,
        dy: TensorId,
        dx: Dst,
        dres: Option<Dst>,
        n: usize,
    ) {
        self.note(format!("norm_backward {i:?} {x:?} {y:?} {relu} {dy:?} {dx:?} {dres:?} {n}"));
    }
    fn join_forward(&mut self, a: TensorId, b: Option<TensorId>, relu: bool, y: TensorId, n: usize) {
        self.note(format!("join_forward {a:?} {b:?} {relu} {y:?} {n}"));
    }
    fn join_backward(&mut self, y: TensorId, relu: bool, dy: TensorId, da: Dst, db: Option<Dst>, n: usize) {
        self.note(format!("join_backward {y:?} {relu} {dy:?} {da:?} {db:?} {n}"));
    }
    fn pool_forward(&mut self, x: TensorId, y: TensorId, n: usize) {
        self.note(format!("pool_forward {x:?} {y:?} {n}"));
    }
    fn pool_backward(&mut self, dy: TensorId, dx: Dst, n: usize) {
        self.note(format!("pool_backward {dy:?} {dx:?} {n}"));
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
        let over = |i| Dst { t: t(i), write: Write::Overwrite };
        let add = |i| Dst { t: t(i), write: Write::Accumulate };
        b.write_tensor(t(1), 2, &[1.0, 2.0]);
        b.conv_forward(ConvId(1), t(2), t(3), 1);
        b.conv_backward_data(ConvId(2), t(4), add(5), 2);
        b.conv_backward_weight(ConvId(3), t(6), t(7), 1);
        b.norm_forward(NormId(1), t(8), Some(t(9)), true, t(10), 2);
        b.norm_infer(NormId(2), t(11), None, false, t(12), 1);
        b.norm_backward(NormId(3), t(13), t(14), true, t(15), over(16), Some(add(17)), 2);
        b.join_forward(t(18), Some(t(19)), false, t(20), 1);
        b.join_backward(t(21), true, t(22), over(23), Some(add(24)), 2);
        b.pool_forward(t(25), t(26), 1);
        b.pool_backward(t(27), over(28), 2);
        let loss = b.cross_entropy(t(29), &[3, 4], 0.125, Some(t(30)), 2);
        (b.read_tensor(t(31), 1), loss)
    }
    let mut alone = Host::new(3);
    let want = all(&mut alone);
    let mut b = gpu(3);
    assert_eq!(all(&mut b), want);
    assert_eq!(*b.host().calls.borrow(), *alone.calls.borrow());
    assert_eq!(alone.calls.borrow().len(), 13);
}
