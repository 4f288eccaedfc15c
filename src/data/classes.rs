//! In-distribution images of some classes only: ImageNet-O is compared with the images of its 200 classes.

use super::ImageSet;
use crate::error::{Error, Result};
use std::io::Read;
use std::path::Path;

/// Longest list of classes: 65,536 numbers of up to 15 characters.
const MAX_LIST: u64 = 1 << 20;

/// The images of `inside` whose classes `outside` has, in their order. The classes are those of the folders of `outside`, found
/// by name among those of `inside`; or, where either has no names, the indices in the file `list` (see
/// [`read_class_list`]), which counts before names. `classes`: how many the in-distribution set has.
pub fn class_subset(inside: &ImageSet, outside: &ImageSet, list: Option<&Path>, classes: usize) -> Result<ImageSet> {
    if let Some(list) = list {
        return inside.of_classes(&read_class_list(list, classes)?);
    }
    for set in [inside, outside] {
        if set.class_names().is_empty() {
            let what = "no class folders, so no names of classes to compare: give a file of class indices, one a line";
            return Err(Error::data(set.name(), what));
        }
    }
    let found = classes_by_name(outside.class_names(), inside.class_names());
    inside.of_classes(&found.map_err(|what| Error::data(outside.name(), what))?)
}

/// Indices of the classes `wanted` in `known`, ascending. The error names the first ones that are not there.
pub fn classes_by_name(wanted: &[String], known: &[String]) -> std::result::Result<Vec<u32>, String> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in wanted {
        match known.iter().position(|k| k == name) {
            Some(i) => found.push(i as u32),
            None => missing.push(name.as_str()),
        }
    }
    if !missing.is_empty() {
        let (n, of, first) = (missing.len(), wanted.len(), missing[..missing.len().min(3)].join(", "));
        return Err(format!("{n} of {of} classes are not among the {} in-distribution ones: {first}", known.len()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Class indices from a text file, one a line, each below `classes` and there once; empty lines are passed over. Ascending.
pub fn read_class_list(path: &Path, classes: usize) -> Result<Vec<u32>> {
    let file = std::fs::File::open(path).map_err(Error::io(path, "cannot open"))?;
    if !file.metadata().map_err(Error::io(path, "cannot open"))?.is_file() {
        return Err(Error::data(path, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_LIST + 1).read_to_end(&mut bytes).map_err(Error::io(path, "cannot read"))?;
    if bytes.len() as u64 > MAX_LIST {
        return Err(Error::data(path, format!("more than {MAX_LIST} bytes: not a list of class indices")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::data(path, "not a text file of class indices"))?;
    let mut seen = vec![false; classes];
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let index = line.trim().parse().ok().filter(|&i: &usize| i < classes);
        let shown: String = line.trim().chars().take(40).collect();
        let fault = |what: &str| Error::data(path, format!("line {}: \"{shown}\"{what}", number + 1));
        let Some(index) = index else {
            return Err(fault(&format!(": wanted a class index of 0 to {}", classes.saturating_sub(1))));
        };
        if std::mem::replace(&mut seen[index], true) {
            return Err(fault(" is there twice"));
        }
    }
    let list: Vec<u32> = (0u32..).zip(&seen).filter(|(_, seen)| **seen).map(|(i, _)| i).collect();
    if list.is_empty() { Err(Error::data(path, "no class index in it: wanted one a line")) } else { Ok(list) }
}
