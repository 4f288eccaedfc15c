//! Networks: functions that push nodes onto a graph, and their names.
//!
//! ```
//! use sparse_engine::models;
//! let (channels, size, classes) = models::default_image("resnet50")?;
//! let graph = models::by_name("resnet50", None, channels, classes, size)?;
//! assert_eq!(graph.param_count(), 25_557_032);
//! assert_eq!(models::by_name("resnet20", 32, 3, 10, 32)?.param_count(), 1_084_586);
//! # Ok::<(), sparse_engine::Error>(())
//! ```

mod blocks;
mod cifar_resnet;
mod imagenet_resnet;
mod own;
mod vgg;

pub use crate::shape::Network;
pub use cifar_resnet::resnet;
pub use imagenet_resnet::imagenet_resnet;
pub use own::own_network;
pub use vgg::vgg;

use crate::error::{Error, Result};
use crate::graph::Graph;

/// Reads a network's name.
///
/// # Errors
/// An unknown name; lists those there are.
pub fn parse(name: &str) -> Result<Network> {
    name.parse().map_err(Error::Usage)
}

/// Builds a network by name ([`Network`]), or that of a file which ends in ".toml" ([`own_network`]). `width`: channels of the first segment of a ResNet for small images, `None` for
/// its standard 16; other networks have one width only.
///
/// # Errors
/// An unknown name, with those there are; a width where none can be chosen; width, class count, channel count or image size
/// out of range.
pub fn by_name(
    name: &str,
    width: impl Into<Option<usize>>,
    channels: usize,
    classes: usize,
    image_size: usize,
) -> Result<Graph> {
    let width = width.into();
    if is_file(name) {
        if width.is_some() {
            return Err(Error::Usage(
                "width: a network of your own has the widths of its file; leave width out".into(),
            ));
        }
        let text = std::fs::read_to_string(name).map_err(Error::io(name, "cannot read the network"))?;
        return own_network(&text, name, [channels, image_size, image_size], classes);
    }
    let network = parse(name)?;
    if width.is_some() && network.standard_width().is_none() {
        return Err(Error::Usage(format!("width: {}", network.no_width())));
    }
    match network {
        Network::CifarResnet { depth } => {
            let width = width.or(network.standard_width()).unwrap_or_default();
            resnet(depth, width, channels, classes, image_size)
        }
        Network::ImagenetResnet { depth, factor } => imagenet_resnet(depth, factor, channels, classes, image_size),
        Network::Vgg { depth } => vgg(depth, channels, classes, image_size),
    }
}

/// Whether a network's name is the path of a file that describes one.
pub fn is_file(name: &str) -> bool {
    std::path::Path::new(name).extension().is_some_and(|e| e == "toml")
}

/// Images that a network's published counts are for: (channels, rows = columns, classes), 3x32x32 of 10 classes for the
/// networks for small images and those of files, 3x224x224 of 1000 for those of ImageNet.
///
/// # Errors
/// An unknown name.
pub fn default_image(name: &str) -> Result<(usize, usize, usize)> {
    if is_file(name) {
        return Ok((3, 32, 10));
    }
    Ok(match parse(name)? {
        Network::CifarResnet { .. } | Network::Vgg { .. } => (3, 32, 10),
        Network::ImagenetResnet { .. } => (3, 224, 1000),
    })
}

/// Checks what every network is given; all faults at once, one a line. `width`: one that can be chosen.
fn check_sizes(
    width: Option<usize>,
    channels: usize,
    classes: usize,
    image_size: usize,
    smallest: usize,
) -> Result<()> {
    let range = |what: &str, v: usize, low: usize, high: usize| {
        let bad = !(low..=high).contains(&v);
        bad.then(|| format!("{what}: wanted {low} to {high}, got {v}"))
    };
    let faults: Vec<String> = [
        width.and_then(|width| range("width", width, 1, crate::shape::MAX_WIDTH)),
        range("channels", channels, 1, 64),
        range("classes", classes, 2, 100_000),
        range("image size", image_size, smallest, 1024),
    ]
    .into_iter()
    .flatten()
    .collect();
    if faults.is_empty() { Ok(()) } else { Err(Error::Usage(faults.join("\n"))) }
}
