//! Which layers `bench kernels` measures.

use super::kernels::KernelsArgs;
use crate::bench::kernels::Op;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::models;
use crate::shape::ConvGeom;

/// An operation on a layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) op: Op,
    pub(super) geom: ConvGeom,
    pub(super) batch: usize,
    /// The network it is from, and how many such layers that has.
    pub(super) model: Option<String>,
    pub(super) layers: usize,
}

impl Entry {
    /// Such as "16x32x32 to 32, 3x3 / 2".
    pub(super) fn label(&self) -> String {
        let ConvGeom { c, h, w, k, r, s, stride, .. } = self.geom;
        let shape = match self.op {
            Op::ConvFwd | Op::ConvDgrad | Op::ConvWgrad => {
                let stride = if stride == 1 { String::new() } else { format!(" / {stride}") };
                format!("{c}x{h}x{w} to {k}, {r}x{s}{stride}")
            }
            Op::Linear => format!("{c} to {k}"),
            Op::Bn => format!("{c}x{h}x{w}"),
            Op::Sgd => format!("{c} weights"),
        };
        match &self.model {
            Some(model) => format!("{shape} ({} of {model})", self.layers),
            None => shape,
        }
    }
}

/// What was asked for.
///
/// # Errors
/// An unknown network, or a shape of another form.
pub(super) fn entries(args: &KernelsArgs) -> Result<Vec<Entry>> {
    let convs = [Op::ConvFwd, Op::ConvDgrad, Op::ConvWgrad];
    let ops = if args.op.is_empty() { &convs[..] } else { &args.op };
    if let Some(shape) = &args.shape {
        let batch = args.batch.map_or(16, |b| b as usize);
        let entry = |&op: &Op| Ok(Entry { op, geom: parse(op, shape)?, batch, model: None, layers: 1 });
        return ops.iter().map(entry).collect();
    }
    let both = ["resnet20".to_string(), "resnet50".to_string()];
    let sets = if args.set.is_empty() { &both[..] } else { &args.set };
    let mut all = vec![];
    for model in sets {
        let (channels, size, classes) = models::default_image(model)?;
        let graph = models::by_name(model, None, channels, classes, size)?;
        let batch = args.batch.map_or(if size < 100 { 128 } else { 16 }, |b| b as usize);
        for &op in ops {
            for (geom, layers) in distinct(op, &graph) {
                all.push(Entry { op, geom, batch, model: Some(model.clone()), layers });
            }
        }
    }
    Ok(all)
}

/// The different layers of a network for an operation, in order, with their numbers.
fn distinct(op: Op, graph: &Graph) -> Vec<(ConvGeom, usize)> {
    let linear = |g: &ConvGeom| (g.h, g.w, g.r, g.s) == (1, 1, 1, 1);
    let geoms = graph.convs().iter().map(|c| c.geom);
    let geoms: Vec<ConvGeom> = match op {
        Op::ConvFwd | Op::ConvWgrad => geoms.filter(|g| !linear(g)).collect(),
        // Images have no gradient.
        Op::ConvDgrad => geoms.skip(1).filter(|g| !linear(g)).collect(),
        Op::Linear => geoms.filter(linear).collect(),
        Op::Bn => geoms.filter(|g| !linear(g)).map(|g| plane(g.k, g.p(), g.q())).collect(),
        Op::Sgd => vec![plane(graph.maskable().iter().map(|m| m.size() as u32).sum(), 1, 1)],
    };
    let mut found: Vec<(ConvGeom, usize)> = vec![];
    for geom in geoms {
        match found.iter_mut().find(|(g, _)| *g == geom) {
            Some((_, layers)) => *layers += 1,
            None => found.push((geom, 1)),
        }
    }
    found
}

/// Only the input of a layer counts.
fn plane(c: u32, h: u32, w: u32) -> ConvGeom {
    ConvGeom { c, h, w, k: 1, r: 1, s: 1, stride: 1, pad: 0 }
}

fn parse(op: Op, text: &str) -> Result<ConvGeom> {
    let wanted = match op {
        Op::ConvFwd | Op::ConvDgrad | Op::ConvWgrad => "C,H,W,K,R,STRIDE or C,H,W,K,R,STRIDE,PAD",
        Op::Linear => "C,K",
        Op::Bn => "C,H,W",
        Op::Sgd => "N",
    };
    let bad = || Error::Usage(format!("--shape {text}: {} wants {wanted}, whole numbers up to 2^24", op.name()));
    let numbers: Vec<u32> = text
        .split(',')
        .map(|n| n.trim().parse().ok().filter(|&n| n <= 1 << 24))
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    match (op, &numbers[..]) {
        (Op::ConvFwd | Op::ConvDgrad | Op::ConvWgrad, &[c, h, w, k, r, stride]) => {
            Ok(ConvGeom { c, h, w, k, r, s: r, stride, pad: r.saturating_sub(1) / 2 })
        }
        (Op::ConvFwd | Op::ConvDgrad | Op::ConvWgrad, &[c, h, w, k, r, stride, pad]) => {
            Ok(ConvGeom { c, h, w, k, r, s: r, stride, pad })
        }
        (Op::Linear, &[c, k]) => Ok(ConvGeom { k, ..plane(c, 1, 1) }),
        (Op::Bn, &[c, h, w]) => Ok(plane(c, h, w)),
        (Op::Sgd, &[n]) => Ok(plane(n, 1, 1)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        let g = parse(Op::ConvFwd, "16,32,30,8,3,2").unwrap();
        assert_eq!(g, ConvGeom { c: 16, h: 32, w: 30, k: 8, r: 3, s: 3, stride: 2, pad: 1 });
        assert_eq!(parse(Op::ConvWgrad, "1, 9,9,1,7,2,0").unwrap().pad, 0);
        assert_eq!(parse(Op::Linear, "64,10").unwrap().k, 10);
        for (op, text) in [
            (Op::ConvFwd, "16,32"),
            (Op::ConvFwd, "16,32,32,8,3,x"),
            (Op::Linear, "1,2,3"),
            (Op::Sgd, ""),
            (Op::Bn, "1,2,99999999"),
        ] {
            let e = parse(op, text).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(op.name()), "{e}");
        }
    }

    #[test]
    fn layers_of_a_network_are_counted_once_each() {
        let graph = models::by_name("resnet20", None, 3, 10, 32).unwrap();
        let all = |op| distinct(op, &graph);
        assert_eq!(all(Op::ConvFwd).len(), 8, "stem, three segments, two of them with two layers for the stride");
        assert_eq!(all(Op::ConvFwd).iter().map(|(_, n)| n).sum::<usize>(), 21);
        assert_eq!(all(Op::ConvDgrad).iter().map(|(_, n)| n).sum::<usize>(), 20);
        assert_eq!(all(Op::Linear), [(ConvGeom { k: 10, ..plane(64, 1, 1) }, 1)]);
        assert_eq!(all(Op::Bn).iter().map(|(g, n)| (g.c, *n)).collect::<Vec<_>>(), [(16, 7), (32, 7), (64, 7)]);
        assert_eq!(all(Op::Sgd)[0].0.c, 270_896);
    }
}
