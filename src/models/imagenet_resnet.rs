//! ResNets and Wide ResNets for images of ImageNet's size.

use super::blocks::{basic_block, bottleneck, conv_norm};
use super::check_sizes;
use crate::error::{Error, Result};
use crate::graph::{Graph, Init};

/// ResNet of depth 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks, stride on the 3x3) for images of any size: conv7x7
/// of stride 2 to 64 channels, 3x3 max pool of stride 2, four segments of blocks of widths 64 to 512 (four times as many
/// channels leave a bottleneck), global average pool, linear (paper section 2.3; ResNet-50: 25,557,032 parameters and 4.09
/// GMACs at 3x224x224 and 1000 classes). Bottlenecks are `factor` times as wide inside: 2 gives the Wide ResNets.
/// Convolutions start Kaiming-normal by fan_in, scales at 1 everywhere, the linear layer as PyTorch does by default.
///
/// # Errors
/// Depth, factor or sizes out of range.
pub fn imagenet_resnet(
    depth: usize,
    factor: usize,
    channels: usize,
    classes: usize,
    image_size: usize,
) -> Result<Graph> {
    check_sizes(None, channels, classes, image_size, 4)?;
    let blocks = match (depth, factor) {
        (18, 1) => [2, 2, 2, 2],
        (34, 1) | (50, 1 | 2) => [3, 4, 6, 3],
        (101, 1 | 2) => [3, 4, 23, 3],
        (152, 1 | 2) => [3, 8, 36, 3],
        _ => {
            return Err(Error::Usage(format!(
                "depth and width factor: wanted 18, 34, 50, 101 or 152 and 1, from depth 50 also 2; got {depth} and {factor}"
            )));
        }
    };
    let mut g = Graph::new(channels, image_size, image_size);
    let x = g.input();
    let x = conv_norm(&mut g, "", "", x, [64, 7, 2])?;
    let x = g.relu(x);
    let mut x = g.max_pool(x, 3, 2, 1)?;
    for (segment, count) in blocks.into_iter().enumerate() {
        let width = 64 << segment;
        for block in 0..count {
            let name = format!("segment{segment}.block{block}");
            let stride = if segment > 0 && block == 0 { 2 } else { 1 };
            x = if depth < 50 {
                basic_block(&mut g, &name, x, width, stride)?
            } else {
                bottleneck(&mut g, &name, x, factor * width, 4 * width, stride)?
            };
        }
    }
    let fan_in = g.nodes()[x.0].chw.0 as usize;
    let x = g.pool(x);
    g.linear("fc", x, classes)?;
    g.set_init("fc.weight", Init::Uniform { fan_in })?;
    Ok(g)
}
