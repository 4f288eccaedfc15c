//! Training with blocks: the accounts, the files, the same bytes as with the same positions and no word of blocks.

use super::*;
use crate::support::*;
use sparse_engine::Error;
use sparse_engine::backend::SgdStep;
use sparse_engine::backend::cpu::CpuBackend;
use sparse_engine::checkpoint::Checkpoint;
use sparse_engine::graph::{Graph, Net, NetState};
use sparse_engine::report::Split;
use sparse_engine::train::{Device, OnDevice};

const BLOCKS: [&str; 3] = ["width=8", "epochs=3", "schedule.milestones=[2]"];

#[test]
fn a_run_with_blocks() {
    let lab = Lab::new();
    let sets = || BLOCKS.iter().flat_map(|set| ["--set", set]);
    let out = run(lab.train("run").args(sets()).args(["--pattern", "block:4x4"])).ok().out;
    let line = out.lines().find(|line| line.starts_with("pattern ")).unwrap_or_else(|| panic!("{out}"));
    let s = lab.summary("run");
    let (blocks, masked) =
        (s.masks.iter().filter(|m| m.block.is_some()), s.masks.iter().filter(|m| m.nnz < m.shape.iter().product()));
    let (blocks, masked) = (blocks.count(), masked.count());
    assert!(line.starts_with(&format!("pattern    block:4x4 in {blocks} of {masked} masked layers, ")), "{out}");
    assert!(blocks >= 3 && masked > blocks, "{blocks} of {masked}");

    // The accounts: the masks of the configuration, the exact budget, what is stored.
    let c = lab.config(&[&BLOCKS[..], &["pattern=block:4x4"]].concat());
    assert_eq!((s.config.pattern, s.config.method), (block(4, 4), Method::Erk));
    let graph = models::by_name("resnet8", Some(8), 1, CLASSES, SIDE).unwrap();
    let masks =
        draw_patterns(&graph.maskable(), &c.method.try_into().unwrap(), c.target().unwrap(), c.pattern, c.mask_draw, 3)
            .unwrap();
    assert!(masks.iter().zip(&s.masks).all(|(a, b)| mask_hash(a) == b.hash && a.nnz() == b.nnz));
    assert!(masks.iter().zip(&s.masks).all(|(a, b)| a.block.map(|block| block.to_string()) == b.block));
    let size: usize = masks.iter().map(Mask::size).sum();
    assert_eq!((s.nnz, s.maskable), (c.target().unwrap().budget(size as u64), size as u64));
    assert_eq!(s.params_sparse, s.params_dense - s.maskable + s.nnz);
    assert_eq!(s.nnz, masks.iter().map(|m| m.nnz() as u64).sum::<u64>());
    assert!(s.results.test_last.score.accuracy > 0.4, "{:?}, chance is 0.25", s.results);

    // The checkpoint holds positions and nothing else; it is evaluated as it was trained.
    let state = Checkpoint::load(&lab.path("run/last.safetensors")).unwrap();
    assert!(state.net.params.iter().filter(|p| p.kept.is_some()).count() == masked);
    let score = lab.evaluate("run", Split::Test, 32, 1, OnDevice { device: Device::Cpu, ..OnDevice::default() });
    assert_eq!(score, s.results.test_last.score);

    // Going on: as it began, or not at all.
    run(lab.resume("run").args(["--pattern", "block:4x4"])).refused(2, &["--pattern cannot be given with --resume"]);
    for other in ["unstructured", "block:8x8"] {
        let mut again = lab.train("run");
        again.args(sets()).args(["--pattern", other, "--resume", "auto"]);
        run(&mut again).refused(2, &["another configuration", &format!("pattern: \"block:4x4\", \"{other}\"")]);
    }
    run(lab.train("run").args(sets()).args(["--pattern", "block:4x4", "--resume", "auto"])).ok();
    assert_eq!(Checkpoint::load(&lab.path("run/last.safetensors")).unwrap(), state);
    // Elsewhere no layer divides, and it is said.

    let out = run(lab.train("none").args(sets()).args(["--pattern", "block:64x64"]).args(["--epochs", "3"])).ok().out;
    assert!(out.contains("\npattern    block:64x64 fits no layer: all are unstructured\n"), "{out}");
}

/// Four steps on fixed images.
fn train(graph: &Graph, masks: &[Mask]) -> NetState {
    let mut net = Net::new(graph, masks, 16, |spec| CpuBackend::new(spec, 2)).unwrap();
    for (param, mask) in net.program().spec.params.iter().filter(|p| p.kept.is_some()).zip(masked(masks)) {
        assert_eq!((param.block, param.range.len()), (mask.block, mask.nnz()), "{}", mask.name);
    }
    net.init(graph, 1);
    let (pixels, labels) = images(16, 7);
    let x: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / 128.0 - 1.0).collect();
    let y: Vec<u32> = labels.iter().map(|&y| u32::from(y)).collect();
    for _ in 0..4 {
        assert!(net.forward_backward(&x, &y, 0.0).loss_sum.is_finite());
        net.sgd(SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: true });
    }
    net.state()
}

fn masked(masks: &[Mask]) -> impl Iterator<Item = &Mask> {
    masks.iter().filter(|m| m.kept.is_some())
}

#[test]
fn the_cpu_trains_blocks_as_the_positions_they_are() {
    let graph = models::by_name("resnet8", Some(16), 1, CLASSES, SIDE).unwrap();
    let masks = super::draw(&graph.maskable(), &Ratio::Uniform, 0.2, block(8, 8), 1);
    assert!(masks.iter().filter(|m| m.block.is_some()).count() >= 3);
    let blind: Vec<Mask> = masks.iter().map(|m| Mask { block: None, ..m.clone() }).collect();
    let state = train(&graph, &masks);
    assert!(state == train(&graph, &blind), "the block of a mask changed what the CPU computes");

    // From a checkpoint's positions the blocks are known again.
    for (param, mask) in state.params.iter().filter(|p| p.kept.is_some()).zip(masked(&masks)) {
        assert_eq!(block(8, 8).block_of(&param.shape, param.kept.as_deref()), mask.block);
        assert_eq!(Pattern::Unstructured.block_of(&param.shape, param.kept.as_deref()), None);
    }

    // A mask that says blocks and has none is refused before anything runs.
    let mut lying = masks.clone();
    let at = lying.iter().position(|m| m.kept.is_some() && m.block.is_none()).unwrap();
    for (l, claim) in [(at, BlockShape { r: 8, c: 8 }), (at, BlockShape { r: 0, c: 8 })] {
        lying[l].block = Some(claim);
        let error = Net::new(&graph, &lying, 4, |spec| CpuBackend::new(spec, 1)).map(drop).unwrap_err();
        let said = error.to_string().contains("its kept positions are no whole blocks");
        assert!(matches!(error, Error::Usage(_)) && said, "{error}");
    }
}
