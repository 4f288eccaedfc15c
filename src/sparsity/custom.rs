//! Which layers a map of patterns names.

use super::{Density, Maskable, Role};
use crate::error::{Error, Result, nearest};

/// Longest list of layers in a message.
const LISTED: usize = 24;

/// The density that `map` gives each layer, by the rules of [`super::Ratio::Custom`].
///
/// # Errors
/// A pattern that names no layer; two of one rank that give a layer different densities.
pub(super) fn pins(layers: &[Maskable], map: &[(String, Density)]) -> Result<Vec<Option<Density>>> {
    for (pattern, _) in map {
        if !layers.iter().any(|l| rank(pattern, l).is_some()) {
            return Err(unmatched(pattern, layers));
        }
    }
    layers.iter().map(|layer| pin(layer, map)).collect()
}

fn pin(layer: &Maskable, map: &[(String, Density)]) -> Result<Option<Density>> {
    let Some(best) = map.iter().filter_map(|(pattern, _)| rank(pattern, layer)).min() else { return Ok(None) };
    let mut equals = map.iter().filter(|(pattern, _)| rank(pattern, layer) == Some(best));
    let Some((first, density)) = equals.next() else { return Ok(None) };
    match equals.find(|(_, other)| other != density) {
        Some((second, other)) => Err(Error::Usage(format!(
            "layer {}: {first:?} gives it density {density}, {second:?} {other}; name the layer itself, or make the \
             patterns differ",
            name(layer)
        ))),
        None => Ok(Some(*density)),
    }
}

/// The name without ".weight".
fn name(layer: &Maskable) -> &str {
    layer.name.strip_suffix(".weight").unwrap_or(&layer.name)
}

/// 0: the layer's name, 1: its role, 2: a pattern with `*`; `None`: another layer.
fn rank(pattern: &str, layer: &Maskable) -> Option<u8> {
    match role(pattern) {
        _ if pattern == name(layer) => Some(0),
        Some(role) => (role == layer.role).then_some(1),
        None => (pattern.contains('*') && matches(pattern, name(layer))).then_some(2),
    }
}

fn role(pattern: &str) -> Option<Role> {
    match pattern {
        "@first" => Some(Role::First),
        "@last" => Some(Role::Last),
        _ => None,
    }
}

/// Whether `name` is `pattern` with some characters, or none, for each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..], // the earliest leaves most for the rest
            None => return false,
        }
    }
    name.ends_with(end)
}

fn unmatched(pattern: &str, layers: &[Maskable]) -> Error {
    let shown: String = pattern.chars().take(80).collect();
    if let Some(role) = role(pattern) {
        return Error::Usage(format!("pattern {shown:?}: no layer of this network {}", role.meaning()));
    }
    let names = || layers.iter().map(name).chain(["@first", "@last"]);
    let hint = match nearest(pattern, names()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => {
            let mut listed: Vec<&str> = names().take(LISTED).collect();
            if names().nth(LISTED).is_some() {
                listed.push("...");
            }
            format!("layers: {}", listed.join(", "))
        }
    };
    Error::Usage(format!("pattern {shown:?} names no layer; {hint} (* stands for any characters)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One character at a time, both choices of each `*` tried.
    fn slowly(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => slowly(rest, name) || (!name.is_empty() && slowly(pattern, &name[1..])),
            ([p, pattern @ ..], [n, name @ ..]) => p == n && slowly(pattern, name),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn wildcards_match_as_the_slow_way_says(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &name), slowly(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
