//! A pickle of a part of a body: its own opcodes, with the memo counted anew.
//!
//! What comes out is what `pickle.dumps` writes for the part alone, as long as a pickler would
//! find the same objects in it.

use crate::decode::format::pickle::opcode as op;
use crate::decode::format::pickle::opcode::Op;
use crate::decode::format::pickle::program::{Pair, Program, Span, offset};

/// How much longer than the body a pickle of a part of it may be.
const MAX_EXCESS: usize = 1024;

/// A frame has no head where its content is shorter (`_Framer` in `Lib/pickle.py`, Python 3.13).
const MIN_FRAME: usize = 4;

/// A frame ends once its content is as long, and bytes and texts as long are in none.
const FRAME_TARGET: usize = 64 * 1024;

/// The pickle of the value of a pair.
pub(super) fn value(program: &Program<'_>, pair: &Pair) -> Vec<u8> {
    let content = cut_out(program, |part| part.copy(pair.value));
    pickle(program.protocol, content.unwrap_or_else(|| item(program, pair)))
}

/// The pickle of a dict that has the pair only.
pub(super) fn dict(program: &Program<'_>, pair: &Pair) -> Vec<u8> {
    let content = cut_out(program, |part| part.dict(pair));
    let content = content.unwrap_or_else(|| {
        let mut content = vec![op::EMPTY_DICT];
        text(program, pair.key, &mut content);
        [content, item(program, pair), vec![op::SETITEM]].concat()
    });
    pickle(program.protocol, content)
}

/// The opcodes of a part of the body, where it can be had without the rest.
fn cut_out<'program, 'body>(
    program: &'program Program<'body>,
    copy: impl FnOnce(&mut Part<'program, 'body>) -> Option<()>,
) -> Option<Vec<u8>> {
    let mut part = Part::new(program);
    copy(&mut part)?;
    Some(part.out)
}

/// A program that builds all of the body and takes the value of the pair out of it. It is right
/// whatever the body does, and longer.
fn item(program: &Program<'_>, pair: &Pair) -> Vec<u8> {
    let mut content = b"coperator\ngetitem\n(".to_vec();
    for op in program.ops(program.whole()) {
        content.extend_from_slice(op.bytes(program.body));
    }
    text(program, pair.key, &mut content);
    content.extend([op::TUPLE, op::REDUCE]);
    content
}

/// Adds a text without putting it into the memo, whose numbers are those of the body.
fn text(program: &Program<'_>, key: Span, out: &mut Vec<u8>) {
    out.extend(program.atom(key).iter().flat_map(|op| op.bytes(program.body)));
}

/// What is known of something in the body's memo.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is not in the part so far.
    Absent,
    /// The part gets it from outside, and its opcodes are being copied.
    Fetched,
    /// It is in the memo of the part, under this number.
    Numbered(u32),
}

/// A part of a body on the way.
struct Part<'program, 'body> {
    program: &'program Program<'body>,
    out: Vec<u8>,
    /// By the numbers of the body's memo.
    memo: Vec<State>,
    /// How much is in the memo of the part.
    length: u32,
    /// The last opcode that is not about the memo.
    last: u8,
    /// Whether something was fetched from outside, so that what it contains may come again.
    has_fetched: bool,
}

impl<'program, 'body> Part<'program, 'body> {
    fn new(program: &'program Program<'body>) -> Self {
        let memo = vec![State::Absent; program.memo_length()];
        Self { program, out: Vec::new(), memo, length: 0, last: op::PROTO, has_fetched: false }
    }

    /// Writes a dict that has the pair only, as a pickler does.
    fn dict(&mut self, pair: &Pair) -> Option<()> {
        let put = match self.program.protocol {
            0 => {
                self.out.extend([op::MARK, op::DICT]);
                op::PUT
            }
            protocol => {
                self.out.push(op::EMPTY_DICT);
                if protocol < 4 { op::BINPUT } else { op::MEMOIZE }
            }
        };
        self.put(put);
        self.copy(pair.key)?;
        self.copy(pair.value)?;
        self.out.push(op::SETITEM);
        Some(())
    }

    /// Copies the opcodes of an item, and of what it gets from outside. Nothing comes out where the
    /// item cannot be had without more of the body.
    fn copy(&mut self, item: Span) -> Option<()> {
        let program = self.program;
        if !program.is_plain {
            return None;
        }
        let mut open = vec![item];
        while let Some(rest) = open.last_mut() {
            let Some(op) = program.op(*rest) else {
                open.pop();
                continue;
            };
            if self.has_fetched {
                let number = |entry: u32| match self.memo.get(entry as usize) {
                    Some(State::Numbered(number)) => Some(*number),
                    _ => None,
                };
                let known = program.first_whole(*rest, |entry| number(entry).is_some());
                if let Some(known) = known {
                    let number = number(known.entry)?;
                    rest.start = known.end;
                    self.get(number);
                    continue;
                }
            }
            rest.start = offset(op.end);
            if op.is_put() {
                let place = self.memo.get_mut(program.put(&op)? as usize)?;
                if let State::Numbered(number) = *place {
                    self.take_instead(number)?;
                } else {
                    *place = State::Numbered(self.length);
                    self.put(op.code);
                }
            } else if op.is_get() {
                let entry = program.got(&op)?;
                let place = self.memo.get_mut(entry as usize)?;
                match *place {
                    State::Numbered(number) => self.get(number),
                    State::Fetched => return None,
                    State::Absent => {
                        *place = State::Fetched;
                        self.has_fetched = true;
                        let span = program.made_by(entry)?;
                        if span.start <= item.start && item.end <= span.end {
                            // The item is part of what it gets.
                            return None;
                        }
                        open.push(span);
                    }
                }
            } else if !op.is_about_bytes() {
                self.out.extend_from_slice(op.bytes(program.body));
                self.last = op.code;
            }
            if self.out.len() > program.body.len() + MAX_EXCESS {
                return None;
            }
        }
        Some(())
    }

    /// Throws away what was just made, and gets it from the memo: it contains itself, and was made
    /// on the way (`save_tuple` and `save_frozenset` in `Lib/pickle.py`, Python 3.13). What a call
    /// makes is not made twice: the call could be of something that is not yet complete.
    fn take_instead(&mut self, number: u32) -> Option<()> {
        let pops: &[u8] = match self.last {
            op::TUPLE1 => &[op::POP],
            op::TUPLE2 => &[op::POP; 2],
            op::TUPLE3 => &[op::POP; 3],
            op::TUPLE | op::FROZENSET => &[op::POP_MARK],
            _ => return None,
        };
        self.out.pop();
        self.out.extend_from_slice(pops);
        self.get(number);
        Some(())
    }

    /// Puts the next thing into the memo, with an opcode of the kind that the body has.
    fn put(&mut self, code: u8) {
        match (code, u8::try_from(self.length)) {
            (op::MEMOIZE, _) => self.out.push(op::MEMOIZE),
            (op::PUT, _) => self.text(op::PUT, self.length),
            (_, Ok(short)) => self.out.extend([op::BINPUT, short]),
            _ => self.long(op::LONG_BINPUT, self.length),
        }
        self.length += 1;
    }

    fn get(&mut self, number: u32) {
        self.last = op::GET;
        match u8::try_from(number) {
            _ if self.program.protocol == 0 => self.text(op::GET, number),
            Ok(short) => self.out.extend([op::BINGET, short]),
            _ => self.long(op::LONG_BINGET, number),
        }
    }

    fn text(&mut self, code: u8, number: u32) {
        self.out.push(code);
        self.out.extend_from_slice(number.to_string().as_bytes());
        self.out.push(b'\n');
    }

    fn long(&mut self, code: u8, number: u32) {
        self.out.push(code);
        self.out.extend_from_slice(&number.to_le_bytes());
    }
}

/// The whole pickle of opcodes that push one item.
fn pickle(protocol: u8, mut content: Vec<u8>) -> Vec<u8> {
    content.push(op::STOP);
    let mut out = Vec::with_capacity(content.len() + 11);
    if protocol >= 2 {
        out.extend([op::PROTO, protocol]);
    }
    if protocol < 4 {
        out.append(&mut content);
        return out;
    }
    frame(&content, &mut out);
    out
}

/// Puts opcodes into frames as Python's pickler does (`_Pickler_OpcodeBoundary` and
/// `_Pickler_write_bytes` in `Modules/_pickle.c`, 3.13).
fn frame(content: &[u8], out: &mut Vec<u8>) {
    if content.len() < FRAME_TARGET {
        close_frame(content, out);
        return;
    }
    let batches = batches(content);
    let mut batches = batches.iter().copied().peekable();
    let mut start = 0;
    let mut last = op::PROTO;
    for op in ops(content) {
        let is_batch = batches.next_if_eq(&op.start).is_some();
        let is_popped = matches!(last, op::POP | op::POP_MARK);
        let begins_object = pushes(op.code) && !is_batch && !(op.is_get() && is_popped);
        if is_large(&op) {
            close_frame(&content[start..op.start], out);
            out.extend_from_slice(op.bytes(content));
            start = op.end;
        } else if begins_object && op.start - start >= FRAME_TARGET {
            close_frame(&content[start..op.start], out);
            start = op.start;
        }
        last = op.code;
    }
    close_frame(&content[start..], out);
}

fn close_frame(content: &[u8], out: &mut Vec<u8>) {
    if content.len() >= MIN_FRAME {
        out.push(op::FRAME);
        out.extend_from_slice(&(content.len() as u64).to_le_bytes());
    }
    out.extend_from_slice(content);
}

fn ops(content: &[u8]) -> impl Iterator<Item = Op<'_>> {
    let mut position = 0;
    std::iter::from_fn(move || {
        let op = Op::read(content, position).ok()?;
        position = op.end;
        Some(op)
    })
}

/// Where the marks are that begin some more items of a container, and not an object.
fn batches(content: &[u8]) -> Vec<usize> {
    let mut open = Vec::new();
    let mut batches = Vec::new();
    for op in ops(content) {
        match op.code {
            op::MARK => open.push(op.start),
            op::APPENDS | op::SETITEMS | op::ADDITEMS => batches.extend(open.pop()),
            op::TUPLE | op::FROZENSET | op::POP_MARK | op::LIST | op::DICT | op::INST | op::OBJ => {
                open.pop();
            }
            _ => {}
        }
    }
    batches.sort_unstable();
    batches
}

/// Whether an opcode stands at the beginning of an object.
fn pushes(code: u8) -> bool {
    !matches!(
        code,
        op::STOP
            | op::POP
            | op::POP_MARK
            | op::REDUCE
            | op::APPEND
            | op::BUILD
            | op::DICT
            | op::APPENDS
            | op::INST
            | op::LIST
            | op::OBJ
            | op::PUT
            | op::BINPUT
            | op::LONG_BINPUT
            | op::MEMOIZE
            | op::SETITEM
            | op::SETITEMS
            | op::ADDITEMS
            | op::TUPLE
            | op::TUPLE1
            | op::TUPLE2
            | op::TUPLE3
            | op::FROZENSET
            | op::NEWOBJ
            | op::NEWOBJ_EX
            | op::STACK_GLOBAL
    )
}

/// Whether an opcode has so much in it that it is in no frame.
fn is_large(op: &Op<'_>) -> bool {
    op.argument.len() >= FRAME_TARGET
        && matches!(
            op.code,
            op::BINUNICODE | op::BINUNICODE8 | op::BINBYTES | op::BINBYTES8 | op::BYTEARRAY8
        )
}
