//! Python's stack machine, without the running: opcodes to values.

use super::{Id, Value};
use std::collections::HashMap;
use std::ops::Range;

/// The machine's state.
pub(super) struct Machine<'a> {
    file: &'a [u8],
    pos: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Machine { file, pos: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }
    }

    /// Position of the next opcode.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    pub(super) fn into_values(self) -> Vec<Value> {
        self.values
    }

    /// Runs one opcode; gives the root where it was the last.
    pub(super) fn step(&mut self) -> Result<Option<Id>, String> {
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
            Value::Dict(items) if new.len().is_multiple_of(2) => {
                items.extend(new.chunks_exact(2).map(|kv| (kv[0], kv[1])))
            }
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
