//! ResNets for small images.

use super::blocks::{basic_block, conv_norm};
use super::check_sizes;
use crate::error::{Error, Result};
use crate::graph::Graph;

/// ResNet for small images: conv3x3 to `width`, three segments of D = (depth-2)/6 basic blocks of widths W, 2W, 4W, the
/// first block of segments 2 and 3 with stride 2 and an option-B shortcut (1x1 convolution + batch norm), global average
/// pool, linear (paper's reference networks, section 2.1; parameters and MACs of ResNet-20: 272,474 and 40.8 M at 3x32x32).
///
/// # Errors
/// Sizes out of range.
pub fn resnet(depth: usize, width: usize, channels: usize, classes: usize, image_size: usize) -> Result<Graph> {
    check_sizes(Some(width), channels, classes, image_size, 4)?;
    if depth < 8 || depth % 6 != 2 {
        return Err(Error::Usage(format!("depth: wanted 6D+2 from 8, got {depth}")));
    }
    let mut g = Graph::new(channels, image_size, image_size);
    let x = g.input();
    let x = conv_norm(&mut g, "", "", x, [width, 3, 1])?;
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
