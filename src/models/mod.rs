//! Networks: functions that push nodes onto a graph.

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId};
use crate::shape;

/// Builds a network by name: "resnetN" for small images, N = 6D+2 from 8 (paper section 4, "ResNet-A-B": depth, width).
///
/// # Errors
/// An unknown name, depth, width, class count, channel count or image size, with what is allowed.
pub fn by_name(name: &str, width: usize, channels: usize, classes: usize, image_size: usize) -> Result<Graph> {
    let depth = shape::resnet_depth(name).map_err(Error::Usage)?;
    resnet(depth, width, channels, classes, image_size)
}

/// ResNet for small images: conv3x3 to `width`, three segments of D = (depth-2)/6 basic blocks of widths W, 2W, 4W, the
/// first block of segments 2 and 3 with stride 2 and an option-B shortcut (1x1 convolution + batch norm), global average
/// pool, linear (paper's reference networks; parameters and MACs of ResNet-20: 272,474 and 40.8 M at 3x32x32).
///
/// # Errors
/// Sizes out of range.
pub fn resnet(depth: usize, width: usize, channels: usize, classes: usize, image_size: usize) -> Result<Graph> {
    let range = |what: &str, v: usize, low: usize, high: usize| {
        let bad = !(low..=high).contains(&v);
        bad.then(|| format!("{what}: wanted {low} to {high}, got {v}"))
    };
    let faults: Vec<String> = [
        range("width", width, 1, shape::MAX_WIDTH),
        range("channels", channels, 1, 64),
        range("classes", classes, 2, 100_000),
        range("image size", image_size, 4, 1024),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !faults.is_empty() {
        return Err(Error::Usage(faults.join("\n")));
    }
    if depth < 8 || depth % 6 != 2 {
        return Err(Error::Usage(format!("depth: wanted 6D+2 from 8, got {depth}")));
    }
    let mut g = Graph::new(channels, image_size, image_size);
    let x = g.conv("conv", g.input(), width, 3, 1, 1)?;
    let x = g.norm("bn", x);
    let mut x = g.relu(x);
    for segment in 0..3 {
        for block in 0..(depth - 2) / 6 {
            let stride = if segment > 0 && block == 0 { 2 } else { 1 };
            x = basic_block(&mut g, &format!("segment{segment}.block{block}"), x, width << segment, stride)?;
        }
    }
    let x = g.pool(x);
    g.linear("fc", x, classes)?;
    Ok(g)
}

/// relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).
fn basic_block(g: &mut Graph, name: &str, x: NodeId, width: usize, stride: usize) -> Result<NodeId> {
    let y = g.conv(&format!("{name}.conv1"), x, width, 3, stride, 1)?;
    let y = g.norm(&format!("{name}.bn1"), y);
    let y = g.relu(y);
    let y = g.conv(&format!("{name}.conv2"), y, width, 3, 1, 1)?;
    let y = g.norm(&format!("{name}.bn2"), y);
    let shortcut = if stride == 1 {
        x
    } else {
        let s = g.conv(&format!("{name}.shortcut.conv"), x, width, 1, stride, 0)?;
        g.norm(&format!("{name}.shortcut.bn"), s)
    };
    let y = g.add(y, shortcut)?;
    Ok(g.relu(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_the_papers() {
        // (depth, width, parameters, maskable, tensors, MMAC) at 3x32x32, 10 classes.
        for (depth, width, params, maskable, tensors, mmac) in [
            (20, 16, 272_474, 270_896, 22, 40.81),
            (32, 16, 466_906, 464_432, 34, 69.12),
            (44, 16, 661_338, 657_968, 46, 97.44),
            (56, 16, 855_770, 851_504, 58, 125.75),
            (110, 16, 1_730_714, 1_722_416, 112, 253.15),
            (20, 8, 68_786, 67_992, 22, 10.31),
            (20, 24, 611_074, 608_712, 22, 91.50),
            (20, 32, 1_084_586, 1_081_440, 22, 162.37),
            (20, 56, 3_314_594, 3_309_096, 22, 496.09),
        ] {
            let g = resnet(depth, width, 3, 10, 32).unwrap();
            assert_eq!(g.param_count(), params, "resnet{depth}-{width}");
            assert_eq!(g.maskable().len(), tensors);
            assert_eq!(g.maskable().iter().map(|m| m.shape.iter().product::<usize>()).sum::<usize>(), maskable);
            let macs: u64 = g.macs().iter().sum();
            assert!(((macs as f64 / 1e6 - mmac).abs() <= 0.005 + 1e-9), "resnet{depth}-{width}: {macs}");
        }
    }

    #[test]
    fn names_and_sizes_out_of_range_are_named() {
        for name in ["resnet21", "resnet+20", "resnet020", "resnet2", "vgg16", "resnet", "resnet-20", ""] {
            let e = by_name(name, 16, 3, 10, 32).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("resnet20"), "{e}");
        }
        let e = resnet(20, 0, 3, 1, 2).unwrap_err().to_string();
        assert!(e.contains("width") && e.contains("classes") && e.contains("image size"), "{e}");
    }
}
