//! VGG with batch norm for small images.

use super::blocks::conv_norm;
use super::check_sizes;
use crate::error::{Error, Result};
use crate::graph::{Graph, Init};

/// VGG-11, -13, -16 or -19 with batch norm: five segments of 3x3 convolutions without bias to 64, 128, 256, 512, 512
/// channels, 2x2 max pools between them, average pool at any size, one linear layer (paper section 2.2, which averages the
/// same 2x2 that 32x32 images leave; VGG-16: 14,724,042 parameters and 313.2 MMACs at 3x32x32 and 10 classes).
/// Convolutions start Kaiming-normal by fan_out, the linear weight as N(0, 0.01), its bias at 0.
///
/// # Errors
/// Depth or sizes out of range; images below 16x16, of which four poolings leave nothing.
pub fn vgg(depth: usize, channels: usize, classes: usize, image_size: usize) -> Result<Graph> {
    check_sizes(None, channels, classes, image_size, 16)?;
    let convs = match depth {
        11 => [1, 1, 2, 2, 2],
        13 => [2, 2, 2, 2, 2],
        16 => [2, 2, 3, 3, 3],
        19 => [2, 2, 4, 4, 4],
        _ => return Err(Error::Usage(format!("depth of a VGG: wanted 11, 13, 16 or 19, got {depth}"))),
    };
    let mut g = Graph::new(channels, image_size, image_size);
    let mut x = g.input();
    for (segment, (count, k)) in convs.into_iter().zip([64, 128, 256, 512, 512]).enumerate() {
        if segment > 0 {
            x = g.max_pool(x, 2, 2, 0)?;
        }
        for i in 1..=count {
            let name = format!("segment{segment}.");
            let y = conv_norm(&mut g, &name, &i.to_string(), x, [k, 3, 1])?;
            x = g.relu(y);
            g.set_init(&format!("{name}conv{i}.weight"), Init::KaimingNormal { fan: k * 9 })?;
        }
    }
    let x = g.pool(x);
    g.linear("fc", x, classes)?;
    g.set_init("fc.weight", Init::Normal { std: 0.01 })?;
    g.set_init("fc.bias", Init::Constant(0.0))?;
    Ok(g)
}
