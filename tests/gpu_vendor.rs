//! Layers that a plan sends to a vendor's library, on the emulated device, where host loops play the library: the bodies that
//! judge every backend judge what surrounds a product. CUDA's own libraries: `tests/gpu_vendor_cuda.rs`.

mod common;

use common::rig::{Build, normal};
use common::{conv, step};
use sparse_engine::backend::gpu::emu::{Emulated, Order};
use sparse_engine::backend::gpu::ops::operand::Element;
use sparse_engine::backend::gpu::vendor::{Pass, Product};
use sparse_engine::backend::gpu::{Driver, GpuBackend, GpuPlan, Precision};
use sparse_engine::backend::{Backend, Finish, Grad, GradDst, Input, Spec, Store, TensorId, Write};
use sparse_engine::report::{read_gpu_plan, write_gpu_plan};
use sparse_engine::shape::ConvGeom;

const SHAPE: ConvGeom = ConvGeom { c: 5, h: 6, w: 4, k: 9, r: 3, s: 3, stride: 1, pad: 1 };

fn default_plan(spec: &Spec, precision: Precision) -> GpuPlan {
    let device = Emulated::new(Order::Ascending).unwrap();
    GpuBackend::new(device, spec.clone(), precision, None).unwrap().plan().clone()
}

/// A backend whose passes are made by the vendor where `wanted` says so; in all layers.
fn backend(order: Order, precision: Precision, wanted: &dyn Fn(Pass) -> bool, spec: Spec) -> GpuBackend<Emulated> {
    let own = default_plan(&spec, precision);
    let mut plan = own.vendor();
    for (layer, own) in plan.layers.iter_mut().zip(&own.layers) {
        if !wanted(Pass::Forward) {
            layer.plan.forward = own.plan.forward;
        }
        if !wanted(Pass::Data) {
            layer.plan.data = own.plan.data;
        }
        layer.plan.weight_by_vendor = wanted(Pass::Weight);
    }
    let device = Emulated::new(order).unwrap().with_vendor();
    GpuBackend::new(device, spec, precision, Some(&plan)).unwrap()
}

fn all(_: Pass) -> bool {
    true
}

#[test]
fn every_operation_with_every_layer_at_the_vendor_f16() {
    common::suite(&|spec| backend(Order::Ascending, Precision::F16, &all, spec));
}

#[test]
fn convolutions_and_networks_in_the_other_precisions() {
    for (order, precision) in
        [(Order::Descending, Precision::F32), (Order::Ascending, Precision::Tf32), (Order::Descending, Precision::Bf16)]
    {
        let make = |spec| backend(order, precision, &all, spec);
        if precision == Precision::F32 {
            conv::check(&make);
        }
        step::earlier_batches_leave_no_trace(&make);
        step::updates_reach_the_kernels(&make);
        step::nets_agree_with_the_reference(&make);
    }
}

/// Passes of ours read what a vendor's pass wrote out, and the other way round.
#[test]
fn some_passes_at_the_vendor() {
    for left_out in Pass::ALL {
        let make = |spec| backend(Order::Ascending, Precision::F16, &|pass| pass != left_out, spec);
        step::earlier_batches_leave_no_trace(&make);
        step::nets_agree_with_the_reference(&make);
    }
}

/// One convolution with everything that surrounds it, and its tensors: x, y, dy, dx.
fn one_conv(batch: usize) -> (Spec, [TensorId; 4]) {
    let mut build = Build::new(batch);
    build.conv(SHAPE, Some((0..SHAPE.weights() as u32).step_by(3).collect()), true);
    let [x, dx] = build.tensors([SHAPE.c, SHAPE.h, SHAPE.w]);
    let [y, dy] = build.tensors([SHAPE.k, SHAPE.p(), SHAPE.q()]);
    (build.0, [x, y, dy, dx])
}

/// What a recorded step leaves when it is replayed on new numbers is what the step leaves.
#[test]
fn products_are_recorded_and_replayed() {
    let (spec, [x, y, dy, dx]) = one_conv(5);
    let id = sparse_engine::backend::ConvId(0);
    let run = |dev: &mut GpuBackend<Emulated>, n: usize| {
        dev.conv_forward(id, Input { t: x, norm: None, relu: true }, y, None, n);
        let dst = GradDst { t: dx, write: Write::Overwrite, finish: Finish::default() };
        dev.conv_backward(id, Input { t: x, norm: None, relu: true }, Grad::plain(dy), Some(dst), n);
    };
    let fill = |dev: &mut GpuBackend<Emulated>, name: &str, n: usize| {
        let random = |what: &str, len: usize| -> Vec<f32> {
            normal(&format!("{what} {name}"), len).into_iter().map(|v| v as f32).collect()
        };
        dev.write_store(Store::Values, &random("values", spec.stored()));
        dev.write_store(Store::Grads, &vec![f32::NAN; spec.stored()]);
        dev.write_tensor(x, n, &random("x", n * (SHAPE.c * SHAPE.h * SHAPE.w) as usize));
        dev.write_tensor(dy, n, &random("dy", n * (SHAPE.k * SHAPE.p() * SHAPE.q()) as usize));
    };
    let left = |dev: &GpuBackend<Emulated>, n: usize| {
        let mut all = dev.read_store(Store::Grads)[3..].to_vec(); // the first three belong to no layer
        [y, dx].into_iter().for_each(|t| all.extend(dev.read_tensor(t, n)));
        assert!(all.iter().all(|v| v.is_finite()));
        all
    };
    for n in [5, 2] {
        let make = || backend(Order::Ascending, Precision::F16, &all, spec.clone());
        let mut recorded = make();
        fill(&mut recorded, "before", n);
        let driver = recorded.driver().clone();
        let graph = driver
            .capture(&mut || {
                run(&mut recorded, n);
                Ok(())
            })
            .unwrap();
        for name in ["one", "two"] {
            let mut direct = make();
            fill(&mut direct, name, n);
            run(&mut direct, n);
            fill(&mut recorded, name, n);
            driver.replay(&graph).unwrap();
            assert!(left(&recorded, n) == left(&direct, n), "{name}, n = {n}");
        }
    }
}

#[test]
fn a_vendor_that_is_not_there_is_an_error_of_one_line() {
    let (spec, _) = one_conv(2);
    let plan = default_plan(&spec, Precision::F16).vendor();
    let device = Emulated::new(Order::Ascending).unwrap();
    let said = GpuBackend::new(device, spec.clone(), Precision::F16, Some(&plan)).err().unwrap().to_string();
    for part in ["forward pass of layer 0", "vendor's library", "emulated gpu has none", "another plan"] {
        assert!(said.contains(part) && !said.contains('\n'), "{part}: {said}");
    }
    // A plan of another network is one too.
    let other = GpuPlan { layers: vec![], ..plan };
    let device = Emulated::new(Order::Ascending).unwrap().with_vendor();
    let said = GpuBackend::new(device, spec, Precision::F16, Some(&other)).err().unwrap().to_string();
    assert!(said.contains("a plan of 0 layers for a network of 1"), "{said}");
}

#[test]
fn memory_and_name_of_the_vendor_are_told() {
    let (spec, _) = one_conv(4);
    let own = GpuBackend::new(Emulated::new(Order::Ascending).unwrap(), spec.clone(), Precision::F16, None).unwrap();
    let with = backend(Order::Ascending, Precision::F16, &all, spec);
    assert!(own.describe() == "emulated gpu, fp16" && with.describe() == "emulated gpu, fp16, host loops");
    // x, dy and dx written out in halves of padded channels: 4 images, 24 pixels, 8 and 16 channels.
    let (own, with) = (own.bytes().activations, with.bytes().activations);
    assert!(with >= own + 2 * 4 * 24 * (8 + 16 + 8), "{own} {with}");
}

#[test]
fn plan_files_tell_of_the_vendor() {
    let (spec, _) = one_conv(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    let own = default_plan(&spec, Precision::Bf16);
    for plan in [own.vendor(), own.clone()] {
        write_gpu_plan(&path, &plan).unwrap();
        assert_eq!(read_gpu_plan(&path).unwrap(), plan);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.contains("\"kind\":\"Vendor\"") && text.contains("\"weight_by_vendor\":true"), plan != own);
        assert!(plan != own || !text.contains("endor"), "a plan without a vendor says nothing of one: {text}");
    }
    // A word that is not known is no plan: it would be one that does something else.
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"splits\"", "\"weight_by_vendors\":true,\"splits\""),
        ("\"columns\"", "\"rows\":1,\"columns\""),
        ("\"forward\"", "\"weight_by_vendors\":true,\"forward\""),
        ("\"precision\"", "\"scale\":1,\"precision\""),
        ("\"weights\"", "\"weight\":1,\"weights\""),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = read_gpu_plan(&path).unwrap_err().to_string();
        assert!(error.contains("unknown field") && error.contains("plan.json"), "{to}: {error}");
    }
    assert!(own.vendor().layers[0].plan.by_vendor(Pass::Weight) && !own.layers[0].plan.by_vendor(Pass::Forward));
}

#[test]
fn products_that_are_no_tensors_are_refused() {
    let device = Emulated::new(Order::Ascending).unwrap().with_vendor();
    let vendor = device.vendor().unwrap();
    let product = Product { pass: Pass::Forward, geom: SHAPE, images: 3, precision: Precision::F16 };
    assert_eq!(product.sizes(), [3 * 24 * 8, 3 * 24 * 16, 16 * 9 * 8]);
    for bad in [Product { images: 0, ..product }, Product { images: 1 << 24, ..product }] {
        let said = vendor.prepare(&bad).err().unwrap().to_string();
        assert!(said.contains("numbers") && !said.contains('\n'), "{said}");
    }
    // Neither odd addresses nor such outside of device memory get through.
    let ready = vendor.prepare(&product).unwrap();
    assert_eq!(ready.output(), Element::F16);
    for (address, word) in [(8, "multiple of 16"), (16, "no buffer")] {
        // SAFETY: refused before anything is read.
        let said = unsafe { ready.run(address, address, address, address) }.unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
    }
    let matrix = ConvGeom { r: 1, s: 1, pad: 0, ..SHAPE };
    assert!(Product { geom: matrix, ..product }.is_matrix() && !product.is_matrix());
    assert!(!Product { geom: ConvGeom { stride: 2, ..matrix }, ..product }.is_matrix());
}
