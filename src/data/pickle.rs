//! A reader for the pickles that hold CIFAR: Python 2's protocol 2 up to protocol 5, numpy arrays of bytes included.
//!
//! It runs nothing: globals stay names, calls stay (name, arguments). The serde-pickle crate was tried for it and drops
//! the names, so that an array of int8 reads as one of uint8, and it copies a memoised value each time it is named, so
//! that a small hostile file fills the memory. Here values lie in one arena and refer to each other by index: no copy, no
//! recursion, memory linear in the number of opcodes, and strings are ranges of the file.

mod machine;

use machine::Machine;
use std::ops::Range;

/// Most opcodes of a file; CIFAR-100's "train" has 300,000.
const MAX_OPCODES: usize = 1 << 20;

type Id = u32;

#[derive(Debug)]
enum Value {
    /// Numbers and singletons that only matter by being there: None, floats, large integers.
    Other,
    Bool(bool),
    Int(i64),
    /// Range of the file.
    Bytes(Range<usize>),
    /// Range of the file; UTF-8 unless the file is wrong.
    Text(Range<usize>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// (module, name), ranges of the file.
    Global(Range<usize>, Range<usize>),
    /// Function, arguments, state given later.
    Call(Id, Id, Option<Id>),
}

/// A parsed file.
pub(super) struct Pickle<'a> {
    file: &'a [u8],
    values: Vec<Value>,
    root: Id,
}

/// A two-dimensional numpy array of uint8.
pub(super) struct Array {
    /// Rows, columns.
    pub shape: [usize; 2],
    /// Whether columns follow one another, and not rows.
    pub fortran: bool,
    pub data: Data,
}

/// Where an array's bytes are.
pub(super) enum Data {
    /// As they stand in the file.
    At(Range<usize>),
    /// Decoded: Python 3 writes bytes as Latin-1 text in protocol 2.
    Decoded(Vec<u8>),
}

impl<'a> Pickle<'a> {
    /// Errors name the opcode's position.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine::new(file);
        for _ in 0..MAX_OPCODES {
            let at = machine.pos();
            let step = machine.step().map_err(|what| format!("pickle: {what} at byte {at}"))?;
            if let Some(root) = step {
                return Ok(Pickle { file, values: machine.into_values(), root });
            }
        }
        Err(format!("pickle: more than {MAX_OPCODES} opcodes"))
    }

    /// Value of `key` in the dictionary that the file holds.
    fn get(&self, key: &str) -> Result<&Value, String> {
        let Value::Dict(items) = self.value(self.root) else { return Err("pickle: not a dictionary".into()) };
        // The last one wins, as in Python.
        let found = items.iter().rev().find(|(k, _)| self.is(*k, &[key]));
        found.map(|(_, v)| self.value(*v)).ok_or_else(|| format!("pickle: no key \"{key}\""))
    }

    /// The list of integers under `key`.
    pub(super) fn integers(&self, key: &str) -> Result<Vec<i64>, String> {
        let Value::List(items) = self.get(key)? else { return Err(format!("pickle: \"{key}\" is not a list")) };
        let ints = items.iter().enumerate().map(|(i, &id)| match self.value(id) {
            Value::Int(v) => Ok(*v),
            _ => Err(format!("pickle: \"{key}\"[{i}] is not an integer")),
        });
        ints.collect()
    }

    /// The array under `key`.
    pub(super) fn array(&self, key: &str) -> Result<Array, String> {
        let fault = |what: &str| format!("pickle: \"{key}\" {what}: wanted a two-dimensional numpy array of uint8");
        let Value::Call(function, args, state) = self.get(key)? else { return Err(fault("is no array")) };
        let (shape, dtype, fortran, data) = if self.is_global(*function, "multiarray", "_reconstruct") {
            // State: (version, shape, dtype, Fortran order, bytes).
            match state.map(|s| self.tuple(s)) {
                Some([_, shape, dtype, fortran, data]) => {
                    (*shape, *dtype, matches!(self.value(*fortran), Value::Bool(true) | Value::Int(1)), *data)
                }
                _ => return Err(fault("has no state")),
            }
        } else if self.is_global(*function, "numeric", "_frombuffer") {
            match self.tuple(*args) {
                [data, dtype, shape, order] => (*shape, *dtype, self.is(*order, &["F"]), *data),
                _ => return Err(fault("has odd arguments")),
            }
        } else {
            return Err(fault("is no array"));
        };
        match self.value(dtype) {
            Value::Call(f, args, _) if self.is_global(*f, "numpy", "dtype") => match self.tuple(*args) {
                [name, ..] if self.is(*name, &["u1", "|u1", "uint8"]) => {}
                _ => return Err(fault("has another type")),
            },
            _ => return Err(fault("has no type")),
        }
        let size = |id: &Id| match self.value(*id) {
            Value::Int(v) => usize::try_from(*v).map_err(|_| fault("has an odd shape")),
            _ => Err(fault("has an odd shape")),
        };
        let shape = match self.tuple(shape) {
            [n, m] => [size(n)?, size(m)?],
            _ => return Err(fault("is not two-dimensional")),
        };
        let (data, len) = match self.value(data) {
            Value::Bytes(range) => (Data::At(range.clone()), range.len()),
            Value::Call(f, args, _) if self.is_global(*f, "_codecs", "encode") => match self.tuple(*args) {
                [text, coding] if self.is(*coding, &["latin1", "latin-1"]) => {
                    let bytes = self.latin1(*text).ok_or_else(|| fault("has bytes that are not Latin-1"))?;
                    let len = bytes.len();
                    (Data::Decoded(bytes), len)
                }
                _ => return Err(fault("has odd bytes")),
            },
            _ => return Err(fault("has no bytes")),
        };
        if shape[0].checked_mul(shape[1]) != Some(len) {
            return Err(format!("pickle: \"{key}\" claims {} x {} bytes, it holds {len}", shape[0], shape[1]));
        }
        Ok(Array { shape, fortran, data })
    }

    fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    fn tuple(&self, id: Id) -> &[Id] {
        if let Value::Tuple(items) = self.value(id) { items } else { &[] }
    }

    /// Whether a string, of bytes or text, is one of these.
    fn is(&self, id: Id, any: &[&str]) -> bool {
        match self.value(id) {
            Value::Bytes(r) | Value::Text(r) => any.iter().any(|a| a.as_bytes() == &self.file[r.clone()]),
            _ => false,
        }
    }

    /// Whether it is `name` of numpy's (or Python's) module that is called `module` or ends in it: numpy 2 moved
    /// numpy.core to numpy._core.
    fn is_global(&self, id: Id, module: &str, name: &str) -> bool {
        let Value::Global(m, n) = self.value(id) else { return false };
        let (m, n) = (&self.file[m.clone()], &self.file[n.clone()]);
        let numpy = [b"numpy.core.".as_slice(), b"numpy._core."];
        n == name.as_bytes()
            && (m == module.as_bytes() || numpy.iter().any(|p| m.strip_prefix(*p) == Some(module.as_bytes())))
    }

    fn latin1(&self, id: Id) -> Option<Vec<u8>> {
        let Value::Text(range) = self.value(id) else { return None };
        let text = std::str::from_utf8(&self.file[range.clone()]).ok()?;
        text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    fn everything(file: &[u8]) {
        if let Ok(pickle) = Pickle::parse(file) {
            let _ = (pickle.integers("labels"), pickle.integers("fine_labels"));
            if let Ok(Array { shape, data: Data::At(range), .. }) = pickle.array("data") {
                assert!(range.end <= file.len() && range.len() == shape[0] * shape[1]);
            }
        }
    }

    #[test]
    fn no_stream_of_opcodes_panics() {
        let opcodes =
            b"\x80\x95.(0NG\x88\x89KMJ\x8aUCTB\x8e\x96\x8cX\x8d)]}\x85\x86\x87tlc\x93Rbaesuqr\x94hj\x00\x01\x04\n";
        for case in 0..20_000 {
            let stream = Stream::new(case, Purpose::Data, "opcodes");
            let len = 1 + stream.below(0, 60);
            let file: Vec<u8> = (1..=len).map(|i| opcodes[stream.below(i, opcodes.len() as u64) as usize]).collect();
            everything(&file);
        }
    }

    #[test]
    fn every_flipped_bit_and_cut_of_a_real_file() {
        for file in [
            include_bytes!("../../tests/fixtures/data/cifar-10-batches-py/data_batch_2").as_slice(),
            include_bytes!("../../tests/fixtures/data/protocol-2-train"),
            include_bytes!("../../tests/fixtures/data/protocol-4-train"),
            include_bytes!("../../tests/fixtures/data/protocol-5-train"),
        ] {
            let mut bytes = file.to_vec();
            for bit in 0..8 * file.len() {
                bytes[bit / 8] ^= 1 << (bit % 8);
                everything(&bytes);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            (0..file.len()).for_each(|len| everything(&file[..len]));
        }
    }

    #[test]
    fn numbers_of_every_width() {
        let file = b"\x80\x02}U\x01a](K\xffM\x01\x02J\xfe\xff\xff\xff\x8a\x00\x8a\x02\xff\x7f\x8a\x01\x80\x8a\x08\0\0\0\0\0\0\0\x80es.";
        let wanted = [255, 513, -2, 0, 32767, -128, i64::MIN];
        assert_eq!(Pickle::parse(file).unwrap().integers("a").unwrap(), wanted);
    }
}
