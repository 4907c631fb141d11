//! What is known of a body whose opcodes were followed: what they build, and of which bytes each
//! part of it is made.

use std::cell::OnceCell;

use crate::decode::DecodeError;
use crate::decode::format::pickle::opcode::Op;

/// Some bytes of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// What an item on the stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mark,
    Dict,
    List,
    /// It is in the memo, and was made before.
    Known,
    Other,
}

/// Something in the memo.
pub(super) struct Entry {
    /// Where the bytes begin that made it.
    pub(super) start: u32,
    /// Where it was put into the memo.
    pub(super) put: u32,
    /// Where the bytes end that made it.
    pub(super) end: u32,
    pub(super) depth: u16,
}

/// Some bytes that push something that is in the memo from then on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Whole {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) entry: u32,
}

/// A key of a dict and its value.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    /// Where the bytes of the dict begin.
    pub(super) dict: u32,
    pub(super) key: Span,
    pub(super) value: Span,
}

/// A body that was followed to its end.
pub(super) struct Program<'body> {
    /// The opcodes, without STOP.
    pub(super) body: &'body [u8],
    pub(super) protocol: u8,
    /// What the body builds.
    pub(super) root: Kind,
    /// The elements of a list that the body builds.
    pub(super) elements: Vec<(Span, Kind)>,
    /// Whether each object is made where its bytes are, so that a part can be cut out.
    pub(super) is_plain: bool,
    /// The pairs of the outermost dicts, dict by dict, each in their order.
    pub(super) pairs: Vec<Pair>,
    /// The memo, in the order in which it was filled.
    pub(super) entries: Vec<Entry>,
    /// The number of the first entry: Python 2 counts from 1.
    pub(super) first_index: u32,
    /// What was got from the memo after it was built on the stack and popped.
    pub(super) rebuilt: Vec<Whole>,
    /// All that pushes an object with an entry in the memo, in the order of the bytes.
    pub(super) wholes: OnceCell<Vec<Whole>>,
}

impl<'body> Program<'body> {
    /// All of it.
    pub(super) fn whole(&self) -> Span {
        Span { start: 0, end: offset(self.body.len()) }
    }

    /// The pairs of the outermost dict whose bytes begin there.
    pub(super) fn pairs(&self, dict: u32) -> &[Pair] {
        let from = self.pairs.partition_point(|pair| pair.dict < dict);
        let to = self.pairs.partition_point(|pair| pair.dict <= dict);
        &self.pairs[from..to]
    }

    /// The opcodes in some bytes, without those that are only about bytes.
    pub(super) fn ops(&self, span: Span) -> impl Iterator<Item = Op<'body>> {
        let mut position = span.start;
        std::iter::from_fn(move || {
            loop {
                let op = self.op(Span { start: position, end: span.end })?;
                position = offset(op.end);
                if !op.is_about_bytes() {
                    return Some(op);
                }
            }
        })
    }

    /// The opcode that some bytes begin with.
    pub(super) fn op(&self, span: Span) -> Option<Op<'body>> {
        if span.start >= span.end {
            return None;
        }
        Op::read(self.body, span.start as usize).ok()
    }

    /// The opcode that pushes an item, where it is only one; what is got from the memo is what was
    /// put there.
    pub(super) fn atom(&self, item: Span) -> Option<Op<'body>> {
        let op = self.only(item)?;
        if op.is_get() { self.only(self.made_by(self.got(&op)?)?) } else { Some(op) }
    }

    /// As [`Program::atom`], but for what is in the memo and long: one body can get it very often.
    pub(super) fn short_atom(&self, item: Span) -> Option<Op<'body>> {
        const MAX_LENGTH: u32 = 128;
        let made = self.made_elsewhere(item);
        if made.is_some_and(|made| made.end - made.start > MAX_LENGTH) {
            None
        } else {
            self.atom(item)
        }
    }

    /// The one opcode in some bytes, besides one that puts it into the memo.
    pub(super) fn only(&self, item: Span) -> Option<Op<'body>> {
        let mut ops = self.ops(item);
        let only = ops.next()?;
        let is_only = ops.next().is_none_or(|op| op.is_put()) && ops.next().is_none();
        is_only.then_some(only)
    }

    /// The bytes that made an item, where it is got from the memo.
    pub(super) fn made_elsewhere(&self, item: Span) -> Option<Span> {
        let get = self.ops(item).next().filter(Op::is_get)?;
        self.made_by(self.got(&get)?)
    }

    /// How many bytes made what the values of the outermost dicts get from the memo, each counted
    /// as often as it is got.
    pub(super) fn shared_bytes(&self) -> usize {
        let shared = self.pairs.iter().filter_map(|pair| self.made_elsewhere(pair.value));
        shared.map(|made| (made.end - made.start) as usize).sum()
    }

    /// What a GET gets.
    pub(super) fn got(&self, get: &Op<'_>) -> Option<u32> {
        get.index()?.checked_sub(self.first_index)
    }

    /// What a PUT has put.
    pub(super) fn put(&self, put: &Op<'_>) -> Option<u32> {
        let found = self.entries.binary_search_by_key(&put.start, |entry| entry.put as usize);
        found.ok().map(offset)
    }

    /// How much is in the memo.
    pub(super) fn memo_length(&self) -> usize {
        self.entries.len()
    }

    /// The bytes that made something in the memo.
    pub(super) fn made_by(&self, entry: u32) -> Option<Span> {
        self.entries.get(entry as usize).map(|entry| Span { start: entry.start, end: entry.end })
    }

    /// The longest beginning of some bytes that pushes something in the memo, of what is asked for.
    pub(super) fn first_whole(
        &self,
        span: Span,
        is_asked_for: impl Fn(u32) -> bool,
    ) -> Option<Whole> {
        let wholes = self.wholes.get_or_init(|| {
            let entries = self.entries.iter().zip(0..);
            let made =
                entries.map(|(&Entry { start, end, .. }, entry)| Whole { start, end, entry });
            let mut wholes = made.chain(self.rebuilt.iter().copied()).collect::<Vec<_>>();
            wholes.sort_unstable();
            wholes
        });
        let after =
            wholes.partition_point(|whole| (whole.start, whole.end) <= (span.start, span.end));
        let before = wholes[..after].iter().rev();
        before
            .take_while(|whole| whole.start == span.start)
            .find(|whole| is_asked_for(whole.entry))
            .copied()
    }
}

/// An offset into the body, which is small enough.
pub(super) fn offset(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

pub(super) fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "pickle", problem, position }
}
