//! Graphs to test on: odd ones by hand, and random ones.

use crate::graph::{Graph, NodeId};
use crate::rng::{Purpose, Stream};

/// A graph that ends in logits of a sum of linear layers over what `build` made, and its name.
fn with_head(name: &'static str, build: impl FnOnce(&mut Graph, NodeId) -> Vec<NodeId>) -> (&'static str, Graph) {
    let mut g = Graph::new(2, 6, 5);
    let x = g.input();
    let ends = build(&mut g, x);
    head(&mut g, &ends);
    (name, g)
}

fn head(g: &mut Graph, ends: &[NodeId]) -> NodeId {
    let mut logits: Option<NodeId> = None;
    for (i, &end) in ends.iter().enumerate() {
        let pooled = g.pool(end);
        let part = g.linear(&format!("fc{i}"), pooled, 3).unwrap();
        logits = Some(logits.map_or(part, |sum| g.add(sum, part).unwrap()));
    }
    logits.unwrap()
}

/// Graphs that are no ResNets, each with a reason to go wrong.
pub(super) fn odd() -> Vec<(&'static str, Graph)> {
    let conv = |g: &mut Graph, name: &str, x: NodeId| g.conv(name, x, 3, 3, 1, 1).unwrap();
    vec![
        with_head("n + n", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let twice = g.add(n, n).unwrap();
            vec![g.relu(twice)]
        }),
        with_head("n + n, and n", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let twice = g.add(n, n).unwrap();
            let d = conv(g, "d", n);
            vec![g.add(twice, d).unwrap()]
        }),
        with_head("x + norm(x)", |g, x| {
            let x = conv(g, "c", x);
            let n = g.norm("n", x);
            vec![g.add(x, n).unwrap()]
        }),
        with_head("norm(x) + relu(norm(x)), the norm last to be walked", |g, x| {
            let x = conv(g, "c", x);
            let n = g.norm("n", x);
            let r = g.relu(n);
            vec![g.add(n, r).unwrap()]
        }),
        with_head("norm(relu(norm))", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let r = g.relu(n);
            let m = g.norm("m", r);
            vec![conv(g, "d", m)]
        }),
        with_head("norm(norm), two readers of the inner one", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let m = g.norm("m", n);
            vec![g.add(n, m).unwrap()]
        }),
        with_head("a norm and a ReLU on the images", |g, x| {
            let n = g.norm("n", x);
            let r = g.relu(x);
            let c = conv(g, "c", n);
            let d = conv(g, "d", r);
            vec![g.add(c, d).unwrap()]
        }),
        with_head("images + images, images + norm(images)", |g, x| {
            let twice = g.add(x, x).unwrap();
            let n = g.norm("n", x);
            let sum = g.add(n, x).unwrap();
            let sum = g.add(twice, sum).unwrap();
            vec![conv(g, "c", sum)]
        }),
        with_head("pools of the images", |g, x| {
            let m = g.max_pool(x, 2, 1, 1).unwrap();
            vec![x, m]
        }),
        with_head("relu(relu)", |g, x| {
            let c = conv(g, "c", x);
            let r = g.relu(c);
            let r = g.relu(r);
            vec![conv(g, "d", r)]
        }),
        with_head("relu(relu(norm)) with the inner one read twice", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let r = g.relu(n);
            let s = g.relu(r);
            let d = conv(g, "d", s);
            vec![g.add(d, r).unwrap()]
        }),
        with_head("relu(a + b) with the sum read twice", |g, x| {
            let a = conv(g, "a", x);
            let b = conv(g, "b", a);
            let sum = g.add(a, b).unwrap();
            let r = g.relu(sum);
            let c = conv(g, "c", r);
            vec![g.add(sum, c).unwrap()]
        }),
        with_head("pools in between", |g, x| {
            let c = g.conv("c", x, 3, 3, 1, 1).unwrap();
            let n = g.norm("n", c);
            let r = g.relu(n);
            let p = g.max_pool(r, 3, 2, 1).unwrap();
            let d = conv(g, "d", p);
            let m = g.norm("m", d);
            let q = g.max_pool(m, 2, 1, 0).unwrap();
            vec![g.norm("o", q), p]
        }),
        with_head("a norm, a ReLU and a norm behind one pool", |g, x| {
            let c = conv(g, "c", x);
            let p = g.max_pool(c, 2, 2, 0).unwrap();
            let [a, b] = ["a", "b"].map(|name| g.norm(name, p));
            let r = g.relu(p);
            let sum = g.add(a, b).unwrap();
            vec![g.add(sum, r).unwrap()]
        }),
        with_head("two readers of a convolution, one of them a norm", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let d = conv(g, "d", c);
            vec![g.add(n, d).unwrap()]
        }),
        with_head("a convolution with two norms", |g, x| {
            let c = conv(g, "c", x);
            let [a, b] = ["a", "b"].map(|name| g.norm(name, c));
            let r = g.relu(a);
            let d = conv(g, "d", r);
            let e = conv(g, "e", b);
            vec![g.add(d, e).unwrap()]
        }),
        with_head("three norms of one gradient", |g, x| {
            let [a, b, c] = ["a", "b", "c"].map(|name| {
                let c = conv(g, name, x);
                g.norm(&format!("{name}.bn"), c)
            });
            let sum = g.add(a, b).unwrap();
            let sum = g.add(sum, c).unwrap();
            vec![g.relu(sum)]
        }),
        with_head("residual of a value that is computed while reading", |g, x| {
            let c = conv(g, "c", x);
            let n = g.norm("n", c);
            let r = g.relu(n);
            let d = conv(g, "d", r);
            let m = g.norm("m", d);
            let sum = g.add(m, r).unwrap();
            vec![g.relu(sum)]
        }),
        with_head("one gradient for a convolution, its input, and a ReLU that must copy", |g, x| {
            let a = conv(g, "a", x);
            let r = g.relu(a);
            let c = conv(g, "c", r);
            let sum = g.add(c, r).unwrap();
            let other = g.add(sum, a).unwrap();
            vec![conv(g, "d", other), sum]
        }),
        with_head("a chain of sums shares one gradient", |g, x| {
            let a = conv(g, "a", x);
            let b = conv(g, "b", a);
            let r = g.relu(b);
            let ab = g.add(a, r).unwrap();
            let abb = g.add(ab, b).unwrap();
            vec![g.add(abb, a).unwrap()]
        }),
        {
            let (name, mut g) = with_head("the last node is a norm", |g, x| vec![conv(g, "c", x)]);
            g.norm("n", NodeId(g.nodes().len() - 1));
            (name, g)
        },
        {
            let (name, mut g) = with_head("the last node is a ReLU of a norm", |g, x| vec![conv(g, "c", x)]);
            let n = g.norm("n", NodeId(g.nodes().len() - 1));
            g.relu(n);
            (name, g)
        },
        ("a linear layer of the images", {
            let mut g = Graph::new(4, 1, 1);
            let l = g.linear("l", g.input(), 3).unwrap();
            let r = g.relu(l);
            g.add(r, l).unwrap();
            g
        }),
        ("no parameter", {
            let mut g = Graph::new(3, 4, 4);
            let r = g.relu(g.input());
            g.pool(r);
            g
        }),
    ]
}

/// A graph of random operations on random earlier nodes; whatever feeds nothing goes to the head.
pub(super) fn random_graph(seed: u64) -> Graph {
    let stream = Stream::new(seed, Purpose::Data, "graph");
    let mut drawn = 0;
    let mut below = |n: usize| {
        drawn += 1;
        stream.below(drawn, n as u64) as usize
    };
    let mut g = Graph::new(1 + below(3), 3 + below(4), 3 + below(4));
    for i in 0..4 + below(12) {
        let last = g.nodes().len() - 1;
        let x = NodeId(last - below(4).min(last));
        let (_, h, w) = g.nodes()[x.0].chw;
        match below(10) {
            0 | 1 => drop(g.conv(&format!("conv{i}"), x, 2 + below(2), 3, 1 + below(2), 1)),
            2 => drop(g.conv(&format!("conv{i}"), x, 2 + below(2), 1, 1, 0)),
            3 | 4 => drop(g.norm(&format!("norm{i}"), x)),
            5 | 6 => drop(g.relu(x)),
            7 | 8 => {
                let same: Vec<usize> = (0..=last).filter(|&j| g.nodes()[j].chw == g.nodes()[x.0].chw).collect();
                let other = same[same.len() - 1 - below(3).min(same.len() - 1)];
                drop(g.add(x, NodeId(other)));
            }
            _ if h.min(w) > 1 => drop(g.max_pool(x, 2, 1 + below(2), below(2))),
            _ => {}
        }
    }
    let ends: Vec<NodeId> = (0..g.nodes().len())
        .filter(|&i| g.nodes().iter().all(|n| n.inputs.iter().all(|id| id.0 != i)))
        .map(NodeId)
        .collect();
    let logits = head(&mut g, &ends);
    match below(4) {
        0 => drop(g.norm("last", logits)),
        1 => drop(g.relu(logits)),
        _ => {}
    }
    g
}
