//! Specs that cannot run are errors.

use crate::backend::cpu::CpuBackend;
use crate::backend::{ConvSpec, NormSpec, ParamId, ParamSpec, Plane, Spec, TensorSpec};
use crate::shape::ConvGeom;

const GEOM: ConvGeom = ConvGeom { c: 1, h: 2, w: 2, k: 2, r: 2, s: 1, stride: 1, pad: 0 };

/// A convolution of two stored weights and a norm of two channels.
fn good() -> Spec {
    let param = |shape: &[usize], kept: Option<Vec<u32>>, start: usize, len: usize| ParamSpec {
        shape: shape.to_vec(),
        kept: kept.map(Into::into),
        decay: true,
        block: None,
        range: start..start + len,
    };
    let plane = Plane { c: 2, h: 3, w: 3 };
    let tensors = vec![TensorSpec::lasting(plane, 0), TensorSpec::lasting(plane, plane.room())];
    Spec {
        batch: 17,
        arena: 2 * plane.room(),
        tensors,
        params: vec![param(&[2], None, 0, 2), param(&[2], None, 2, 2), param(&[2, 1, 2, 1], Some(vec![1, 3]), 4, 2)],
        convs: vec![ConvSpec { geom: GEOM, weight: ParamId(2), bias: Some(ParamId(0)) }],
        norms: vec![NormSpec { c: 2, gamma: ParamId(0), beta: ParamId(1), running: 0, eps: 1e-5, momentum: 0.1 }],
        ..Spec::default()
    }
}

type Change = fn(&mut Spec);

#[test]
fn faulty_specs_are_errors() {
    assert!(CpuBackend::new(good(), 1).is_ok());
    let changes: [(&str, Change); 17] = [
        ("batch 0", |s| s.batch = 0),
        ("more memory than there is", |s| s.batch = usize::MAX / 4),
        ("a tensor beyond the arena", |s| s.tensors[1].at += 1),
        ("a plane beyond u32", |s| (s.tensors[0].plane.h, s.arena) = (1 << 27, 1 << 40)),
        ("a gap in the stores", |s| s.params[1].range.end += 1),
        ("a norm of more channels than its scale", |s| s.norms[0].c = 5),
        ("a running store that is too short", |s| s.norms[0].running = 1),
        ("a kernel beyond the image", |s| s.convs[0].geom.r = 5),
        ("stride 0", |s| s.convs[0].geom.stride = 0),
        ("a stride of 65", |s| s.convs[0].geom.stride = 65),
        ("patches of whole planes beyond u32", |s| {
            s.params[2] =
                ParamSpec { shape: vec![40_000, 1, 1, 1], kept: None, decay: true, block: None, range: 4..40_004 };
            s.convs[0].geom = ConvGeom { h: 400, w: 400, k: 40_000, r: 1, ..GEOM };
            s.convs[0].bias = None;
        }),
        ("no channels", |s| s.convs[0].geom.c = 0),
        ("no such weight", |s| s.convs[0].weight = ParamId(9)),
        ("no such bias", |s| s.convs[0].bias = Some(ParamId(9))),
        ("a bias of another length", |s| {
            s.params.push(ParamSpec { shape: vec![3], kept: None, decay: true, block: None, range: 6..9 });
            s.convs[0].bias = Some(ParamId(3));
        }),
        ("positions that do not ascend", |s| s.params[2].kept = Some(vec![3, 1].into())),
        ("positions beyond the weight", |s| s.params[2].kept = Some(vec![1, 4].into())),
    ];
    for (what, change) in changes {
        let mut spec = good();
        change(&mut spec);
        let message = CpuBackend::new(spec, 1).err().unwrap_or_else(|| panic!("{what}: no error")).to_string();
        let known = ["cpu backend: ", "out of memory: "].iter().any(|start| message.starts_with(start));
        assert!(known && !message.contains('\n'), "{what}: {message}");
        let told = ["wanted", "no such", "memory", "beyond", "too large", "of another length"];
        assert!(told.iter().any(|t| message.contains(t)), "{what}: {message}");
    }
}
