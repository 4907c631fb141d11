//! A pickle of the value of one member: its own opcodes, with the memo counted anew.

use std::collections::BTreeMap;

use crate::decode::format::pickle::opcode::{
    BINGET, BINPUT, LONG_BINGET, LONG_BINPUT, MEMOIZE, POP, PROTO, STOP, StackEffect,
};
use crate::decode::format::pickle::walk::{Pair, Program, Span};

/// A pickle of the value of a pair, with opcodes that are put around it.
///
/// What the value gets from the memo and other parts of the body have put there is made first and
/// popped. Where such a part contains the value, or something changes from elsewhere, all of the
/// body is built and the value is taken out of it with `operator.getitem`. Either way the pickle
/// has no opcode of the body twice.
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

/// The parts of the body, in their order, that make what a value gets from the memo and does not
/// make itself. There are none that suffice where one of them contains the value.
fn needed(program: &Program<'_>, value: Span) -> Option<Vec<Span>> {
    if program.is_entangled {
        return None;
    }
    // What was read, by its start. What it contains and was read before is not read again.
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

/// Copies opcodes of a body to a pickle with a memo of its own.
struct Copy<'program, 'body> {
    program: &'program Program<'body>,
    /// The numbers in the memo of the copy, by the place among the entries of the body: one for
    /// each entry that is got.
    numbers: BTreeMap<u32, u32>,
    /// How much is in the memo of the copy.
    length: u32,
}

impl<'program, 'body> Copy<'program, 'body> {
    /// Of these spans, which are to be copied in their order.
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
                // They are about bytes that are elsewhere now.
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

/// Writes the short or the long opcode for a number in the memo.
fn memo([short, long]: [u8; 2], number: u32, out: &mut Vec<u8>) {
    if let Ok(number) = u8::try_from(number) {
        out.extend([short, number]);
    } else {
        out.push(long);
        out.extend(number.to_le_bytes());
    }
}
