//! Makes a pickle of the value of one member. It consists of the member's opcodes, with new numbers
//! for the memo.

use std::collections::BTreeMap;

use crate::decode::format::pickle::opcode::{
    BINGET, BINPUT, LONG_BINGET, LONG_BINPUT, MEMOIZE, POP, PROTO, STOP, StackEffect,
};
use crate::decode::format::pickle::walk::{Pair, Program, Span};

/// A pickle of the value of a pair. `around` contains the opcodes to put before and after the
/// value.
///
/// If the value gets objects from the memo that other parts of the body have put there, the pickle
/// first builds these objects and pops them off the stack. If such a part contains the value, or if
/// an object is changed from elsewhere in the body, the pickle builds the whole body and takes the
/// value out of it with `operator.getitem`. In both cases each opcode of the body is copied at most
/// once.
pub(super) fn pickle(program: &Program<'_>, pair: &Pair, around: [&[u8]; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    if let [PROTO, protocol, ..] = program.body {
        out.extend([PROTO, *protocol]);
    }
    let [before, after] = around;
    if let Some(needed) = needed(program, pair.value) {
        let mut copy = Copy::new(program, needed.iter().copied().chain([pair.value]));
        for span in needed {
            copy.span(span, &mut out);
            out.push(POP);
        }
        out.extend(before);
        copy.span(pair.value, &mut out);
    } else {
        let end = u32::try_from(program.body.len()).unwrap_or(u32::MAX);
        let whole = Span { start: 0, end };
        out.extend(before);
        out.extend(b"coperator\ngetitem\n(");
        Copy::new(program, [whole]).span(whole, &mut out);
        out.extend(program.op(pair.key).iter().flat_map(|key| program.bytes(key)));
        out.extend(b"tR");
    }
    out.extend(after);
    out.push(STOP);
    out
}

/// The parts of the body, in their order, that build the objects which the value gets from the memo
/// and does not build itself. Returns `None` if one of these parts contains the value, because then
/// only the whole body will do.
fn needed(program: &Program<'_>, value: Span) -> Option<Vec<Span>> {
    if program.is_entangled {
        return None;
    }
    // The spans that have been read, by their starts. A span inside another one that was read
    // before is not read again.
    let mut read = BTreeMap::<u32, u32>::new();
    let mut open = vec![value];
    while let Some(span) = open.pop() {
        let before = read.range(..=span.start).next_back();
        if before.is_some_and(|(_, &end)| span.end <= end) {
            continue;
        }
        let mut position = span.start;
        while position < span.end {
            if let Some(end) = read.remove(&position) {
                position = end;
                continue;
            }
            let op = program.op(position)?;
            position = op.end;
            if op.effect == StackEffect::Get {
                let made = program.entries.get(program.got(&op)? as usize)?.span;
                if !span.contains(made) {
                    open.push(made);
                }
            }
        }
        read.insert(span.start, span.end);
    }
    read.remove(&value.start).filter(|&end| end == value.end)?;
    Some(read.into_iter().map(|(start, end)| Span { start, end }).collect())
}

/// Copies opcodes of a body to a pickle that has its own memo.
struct Copy<'program, 'body> {
    program: &'program Program<'body>,
    /// The numbers in the memo of the copy, by the index of the entry in the memo of the body. Only
    /// entries that are read by a GET have one.
    numbers: BTreeMap<u32, u32>,
    /// The number of entries in the memo of the copy.
    length: u32,
}

impl<'program, 'body> Copy<'program, 'body> {
    /// A copy of these spans, which must be copied in this order.
    fn new(program: &'program Program<'body>, spans: impl IntoIterator<Item = Span>) -> Self {
        let ops = spans.into_iter().flat_map(|span| program.ops(span));
        let gets = ops.filter(|op| op.effect == StackEffect::Get);
        let numbers = gets.filter_map(|op| Some((program.got(&op)?, 0))).collect();
        Self { program, numbers, length: 0 }
    }

    fn span(&mut self, span: Span, out: &mut Vec<u8>) {
        let entries = &self.program.entries;
        let place = entries.partition_point(|entry| entry.put < span.start);
        let mut place = u32::try_from(place).unwrap_or(u32::MAX);
        for op in self.program.ops(span) {
            match op.effect {
                // These describe the layout of the original body, which the copy does not have.
                StackEffect::Protocol | StackEffect::Frame => {}
                StackEffect::Put => {
                    if let Some(number) = self.numbers.get_mut(&place) {
                        *number = self.length;
                        self.length += 1;
                        match op.code {
                            MEMOIZE => out.push(MEMOIZE),
                            _ => memo([BINPUT, LONG_BINPUT], *number, out),
                        }
                    }
                    place += 1;
                }
                StackEffect::Get => {
                    let got = self.program.got(&op);
                    let number = got.and_then(|place| self.numbers.get(&place));
                    memo([BINGET, LONG_BINGET], number.copied().unwrap_or(0), out);
                }
                _ => out.extend(self.program.bytes(&op)),
            }
        }
    }
}

/// Writes the short or the long form of an opcode that takes a number in the memo.
fn memo([short, long]: [u8; 2], number: u32, out: &mut Vec<u8>) {
    if let Ok(number) = u8::try_from(number) {
        out.extend([short, number]);
    } else {
        out.push(long);
        out.extend(number.to_le_bytes());
    }
}
