//! A reader for the pickles that hold CIFAR: Python 2's protocol 2 up to protocol 5, numpy arrays of bytes included.
//!
//! It runs nothing: globals stay names, calls stay (name, arguments). The serde-pickle crate was tried for it and drops
//! the names, so that an array of int8 reads as one of uint8, and it copies a memoised value each time it is named, so
//! that a small hostile file fills the memory. Here values lie in one arena and refer to each other by index: no copy, no
//! recursion, memory linear in the number of opcodes, and strings are ranges of the file.

use std::collections::HashMap;
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
        let mut machine =
            Machine { file, pos: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        for _ in 0..MAX_OPCODES {
            let at = machine.pos;
            let step = machine.step().map_err(|what| format!("pickle: {what} at byte {at}"))?;
            if let Some(root) = step {
                return Ok(Pickle { file, values: machine.values, root });
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

/// Python's stack machine, without the running.
struct Machine<'a> {
    file: &'a [u8],
    pos: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    /// One opcode; the root where it is the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let value = match self.byte()? {
            0x80 => return self.byte().map(|_| None),                            // PROTO
            0x95 => return self.take(8).map(|_| None),                           // FRAME
            b'.' => return self.pop().map(Some),                                 // STOP
            b'(' => return self.mark(),                                          // MARK
            b'0' => return self.pop().map(|_| None),                             // POP
            b'N' => Value::Other,                                                // NONE
            b'G' => self.take(8).map(|_| Value::Other)?,                         // BINFLOAT
            0x88 => Value::Bool(true),                                           // NEWTRUE
            0x89 => Value::Bool(false),                                          // NEWFALSE
            b'K' => Value::Int(self.unsigned(1)? as i64),                        // BININT1
            b'M' => Value::Int(self.unsigned(2)? as i64),                        // BININT2
            b'J' => Value::Int(self.unsigned(4)? as u32 as i32 as i64),          // BININT
            0x8a => self.long()?,                                                // LONG1
            b'U' | b'C' => Value::Bytes(self.string(1)?),                        // SHORT_BINSTRING, SHORT_BINBYTES
            b'T' | b'B' => Value::Bytes(self.string(4)?),                        // BINSTRING, BINBYTES
            0x8e | 0x96 => Value::Bytes(self.string(8)?),                        // BINBYTES8, BYTEARRAY8
            0x8c => Value::Text(self.string(1)?),                                // SHORT_BINUNICODE
            b'X' => Value::Text(self.string(4)?),                                // BINUNICODE
            0x8d => Value::Text(self.string(8)?),                                // BINUNICODE8
            b')' => Value::Tuple(Vec::new()),                                    // EMPTY_TUPLE
            b']' => Value::List(Vec::new()),                                     // EMPTY_LIST
            b'}' => Value::Dict(Vec::new()),                                     // EMPTY_DICT
            n @ 0x85..=0x87 => Value::Tuple(self.pop_n(usize::from(n) - 0x84)?), // TUPLE1, 2, 3
            b't' => Value::Tuple(self.pop_to_mark()?),                           // TUPLE
            b'l' => Value::List(self.pop_to_mark()?),                            // LIST
            b'c' => Value::Global(self.line()?, self.line()?),                   // GLOBAL
            0x93 => {
                // STACK_GLOBAL
                let names = self.pop_n(2)?;
                let text = |id: Id| match &self.values[id as usize] {
                    Value::Text(r) => Ok(r.clone()),
                    _ => Err("a global without a name".to_string()),
                };
                Value::Global(text(names[0])?, text(names[1])?)
            }
            b'R' => {
                // REDUCE
                let call = self.pop_n(2)?;
                Value::Call(call[0], call[1], None)
            }
            b'b' => {
                // BUILD: the state of the object below, which may be memoised already
                let state = self.pop()?;
                match self.top()? {
                    Value::Call(_, _, slot) => *slot = Some(state),
                    _ => return Err("state for something that is no object".into()),
                }
                return Ok(None);
            }
            b'a' => {
                let item = self.pop()?; // APPEND
                return self.append(vec![item]);
            }
            b'e' => {
                let items = self.pop_to_mark()?; // APPENDS
                return self.append(items);
            }
            b's' => {
                let items = self.pop_n(2)?; // SETITEM
                return self.set(&items);
            }
            b'u' => {
                let items = self.pop_to_mark()?; // SETITEMS
                return self.set(&items);
            }
            b'q' => return self.unsigned(1).and_then(|slot| self.put(slot)), // BINPUT
            b'r' => return self.unsigned(4).and_then(|slot| self.put(slot)), // LONG_BINPUT
            0x94 => return self.put(self.memo.len() as u64),                 // MEMOIZE
            b'h' => return self.unsigned(1).and_then(|slot| self.fetch(slot)), // BINGET
            b'j' => return self.unsigned(4).and_then(|slot| self.fetch(slot)), // LONG_BINGET
            other => return Err(format!("opcode {other:#04x} does not occur in CIFAR's files")),
        };
        self.values.push(value);
        self.stack.push(self.values.len() as Id - 1);
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<Range<usize>, String> {
        let end = self.pos.checked_add(n).filter(|&end| end <= self.file.len());
        let range = self.pos..end.ok_or_else(|| format!("truncated: {n} bytes wanted"))?;
        self.pos = range.end;
        Ok(range)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.take(1).map(|r| self.file[r.start])
    }

    /// Little-endian number of `n <= 8` bytes.
    fn unsigned(&mut self, n: usize) -> Result<u64, String> {
        let bytes = self.take(n)?;
        Ok(self.file[bytes].iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
    }

    /// Two's complement of a stated number of bytes; longer than 8 is no count or label.
    fn long(&mut self) -> Result<Value, String> {
        let n = usize::from(self.byte()?);
        if n == 0 {
            return Ok(Value::Int(0));
        }
        if n > 8 {
            return self.take(n).map(|_| Value::Other);
        }
        let unused = 64 - 8 * n as u32;
        Ok(Value::Int((self.unsigned(n)? << unused) as i64 >> unused))
    }

    /// A string after its length of `n` bytes.
    fn string(&mut self, n: usize) -> Result<Range<usize>, String> {
        let len = self.unsigned(n)?;
        self.take(usize::try_from(len).map_err(|_| "a string too long")?)
    }

    fn line(&mut self) -> Result<Range<usize>, String> {
        let rest = &self.file[self.pos..];
        let len = rest.iter().take(256).position(|&b| b == b'\n').ok_or("a name without an end")?;
        let range = self.take(len)?;
        self.take(1)?;
        Ok(range)
    }

    /// Lowest stack height that the current mark lets be taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.pop_n(1).map(|v| v[0])
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<Id>, String> {
        let from = self.stack.len().checked_sub(n).filter(|&from| from >= self.floor());
        Ok(self.stack.split_off(from.ok_or("nothing on the stack")?))
    }

    fn mark(&mut self) -> Result<Option<Id>, String> {
        self.marks.push(self.stack.len());
        Ok(None)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let from = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(from))
    }

    fn top(&mut self) -> Result<&mut Value, String> {
        let id = *self.stack.last().ok_or("nothing on the stack")?;
        Ok(&mut self.values[id as usize])
    }

    fn append(&mut self, new: Vec<Id>) -> Result<Option<Id>, String> {
        match self.top()? {
            Value::List(items) => items.extend(new),
            _ => return Err("append to something that is no list".into()),
        }
        Ok(None)
    }

    fn set(&mut self, new: &[Id]) -> Result<Option<Id>, String> {
        match self.top()? {
            Value::Dict(items) if new.len() % 2 == 0 => items.extend(new.chunks_exact(2).map(|kv| (kv[0], kv[1]))),
            _ => return Err("items for something that is no dictionary".into()),
        }
        Ok(None)
    }

    fn put(&mut self, slot: u64) -> Result<Option<Id>, String> {
        let id = *self.stack.last().ok_or("nothing on the stack")?;
        self.memo.insert(slot as u32, id);
        Ok(None)
    }

    fn fetch(&mut self, slot: u64) -> Result<Option<Id>, String> {
        let id = *self.memo.get(&(slot as u32)).ok_or_else(|| format!("nothing kept under {slot}"))?;
        self.stack.push(id);
        Ok(None)
    }
}
