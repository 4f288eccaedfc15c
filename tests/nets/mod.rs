//! ResNets for small images by the 6D+2 rule of paper section 2.1, written a second time for the tests, and mask helpers.
#![allow(dead_code)] // each test file uses its part

use sparse_engine::sparsity::{Mask, Maskable, Role};

/// Maskable tensors in creation order with the dense multiply-accumulates of each, and the parameters of the whole net.
pub struct Net {
    pub layers: Vec<Maskable>,
    pub macs: Vec<u64>,
    pub params: u64,
}

pub fn resnet(depth: usize, width: usize, channels: usize, classes: usize, image: usize) -> Net {
    let mut net = Net { layers: Vec::new(), macs: Vec::new(), params: 0 };
    let mut push = |name: String, shape: Vec<usize>, pixels: usize| {
        let size: usize = shape.iter().product();
        net.macs.push((size * pixels) as u64);
        net.params += (size + if shape.len() == 4 { 2 * shape[0] } else { shape[0] }) as u64; // batch norm, or bias
        let role = match name.as_str() {
            "conv.weight" => Role::First,
            "fc.weight" => Role::Last,
            _ => Role::Inner,
        };
        net.layers.push(Maskable { name, shape, role });
    };
    push("conv.weight".into(), vec![width, channels, 3, 3], image * image);
    let (mut c, mut side) = (width, image);
    for segment in 0..3 {
        let k = width << segment;
        for block in 0..(depth - 2) / 6 {
            let down = segment > 0 && block == 0;
            side = if down { side.div_ceil(2) } else { side };
            let name = format!("segment{segment}.block{block}");
            push(format!("{name}.conv1.weight"), vec![k, c, 3, 3], side * side);
            push(format!("{name}.conv2.weight"), vec![k, k, 3, 3], side * side);
            if down {
                push(format!("{name}.shortcut.conv.weight"), vec![k, c, 1, 1], side * side);
            }
            c = k;
        }
    }
    push("fc.weight".into(), vec![classes, c], 1);
    net
}

/// Whether `outer` keeps every position that `inner` keeps.
pub fn contains(outer: &Mask, inner: &Mask) -> bool {
    match (&outer.kept, &inner.kept) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) => inner.iter().all(|position| outer.binary_search(position).is_ok()),
    }
}
