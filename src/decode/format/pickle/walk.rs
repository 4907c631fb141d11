//! Follows the opcodes of a body without executing them.
//!
//! Each item on the stack is represented by the span of bytes that builds it: from its first opcode
//! to the last one that changes it. Two spans are either nested or disjoint, and the opcodes of
//! each span leave exactly one more item on the stack. Opcodes that push and pop something between
//! two items belong to neither of them.

use crate::decode::DecodeError;
use crate::decode::format::pickle::opcode::{
    BINUNICODE, BINUNICODE8, Kind, MEMOIZE, Op, REDUCE, SHORT_BINUNICODE, StackEffect, TUPLE2,
    little_endian,
};
use crate::decode::format::pickle::text;

/// The highest version of the pickle protocol.
const HIGHEST_PROTOCOL: u8 = 5;

/// The maximum length of a name in bytes. All members that are used have shorter names. Without
/// this limit a long string in the memo could be the name of very many members.
const MAX_NAME: usize = 128;

/// A range of bytes of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    /// Whether another span is in this one.
    pub(super) fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// An entry of the memo.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// The bytes that build it.
    pub(super) span: Span,
    /// The offset of the opcode that puts it into the memo.
    pub(super) put: u32,
    depth: u16,
    kind: Kind,
}

/// A key of a dict and its value.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    /// The offset at which the bytes of the dict begin.
    pub(super) dict: u32,
    /// The offset of the opcode that pushes the key, which is a scalar.
    pub(super) key: u32,
    pub(super) value: Span,
    pub(super) kind: Kind,
    /// The bytes that build the value. They differ from `value` if that only gets the value from
    /// the memo.
    pub(super) made: Span,
}

/// A body whose opcodes have been followed to the end.
#[derive(Default)]
pub(super) struct Program<'body> {
    /// The opcodes, without STOP.
    pub(super) body: &'body [u8],
    /// The object that the body builds: the offset at which its bytes begin, and its kind.
    pub(super) root: (u32, Kind),
    /// The elements, if the body builds a list: the offset at which their bytes begin, and their
    /// kind.
    pub(super) elements: Vec<(u32, Kind)>,
    /// The pairs of the outermost dicts, sorted by dict; the pairs of one dict are in their
    /// original order.
    pairs: Vec<Pair>,
    /// The memo, in the order in which it is filled.
    pub(super) entries: Vec<Entry>,
    /// The number of the first entry. Python 2 counts from 1.
    first_index: u32,
    /// Whether an object is changed by opcodes outside of its span. Then no part of the body can be
    /// copied without the rest.
    pub(super) is_entangled: bool,
}

impl<'body> Program<'body> {
    /// Follows the opcodes of a body. Its values may be nested at most `max_depth` levels deep, not
    /// counting the `outer` levels of the containers that hold them.
    pub(super) fn read(
        body: &'body [u8],
        max_depth: usize,
        outer: usize,
    ) -> Result<Self, DecodeError> {
        if u32::try_from(body.len()).is_err() {
            return Err(DecodeError::BodyTooLarge { limit: u32::MAX as usize });
        }
        let program = Self { body, ..Self::default() };
        let mut walk = Walk { program, ..Walk::default() };
        let mut position = 0;
        loop {
            let at_position = |problem| malformed(problem, position as usize);
            let op = Op::read(body, position).map_err(at_position)?;
            walk.step(&op).map_err(at_position)?;
            let depth = walk.stack.last().map_or(0, |top| usize::from(top.depth));
            if depth > max_depth.saturating_add(outer) {
                return Err(DecodeError::TooDeep { limit: max_depth });
            }
            if op.effect == StackEffect::Stop {
                return Ok(walk.finish(op.start));
            }
            position = op.end;
        }
    }

    /// The opcode at an offset.
    pub(super) fn op(&self, start: u32) -> Option<Op<'body>> {
        Op::read(self.body, start).ok()
    }

    /// The bytes of an opcode.
    pub(super) fn bytes(&self, op: &Op<'_>) -> &'body [u8] {
        &self.body[op.start as usize..op.end as usize]
    }

    /// The opcodes in some bytes.
    pub(super) fn ops(&self, span: Span) -> impl Iterator<Item = Op<'body>> {
        let next = move |start: u32| (start < span.end).then(|| self.op(start)).flatten();
        std::iter::successors(next(span.start), move |op| next(op.end))
    }

    /// The pairs of the outermost dict whose bytes begin at the offset `dict`.
    pub(super) fn pairs(&self, dict: u32) -> &[Pair] {
        let from = self.pairs.partition_point(|pair| pair.dict < dict);
        let to = self.pairs.partition_point(|pair| pair.dict <= dict);
        &self.pairs[from..to]
    }

    /// The total size in bytes of the scalars that the outermost dicts get from the memo as values.
    /// A scalar is counted each time it is used.
    pub(super) fn shared_bytes(&self) -> usize {
        let shared = self.pairs.iter().filter(|pair| pair.kind == Kind::Scalar);
        let shared = shared.filter(|pair| !pair.value.contains(pair.made));
        shared.map(|pair| (pair.made.end - pair.made.start) as usize).sum()
    }

    /// The opcode that pushes the scalar which an opcode of the body pushes or gets from the memo;
    /// `None` if the scalar is longer than a name may be.
    pub(super) fn short_scalar(&self, op: Op<'body>) -> Option<Op<'body>> {
        let op = match op.effect {
            StackEffect::Get => {
                let entry = self.entries.get(self.got(&op)? as usize)?;
                self.op(entry.span.start).filter(|_| entry.kind == Kind::Scalar)?
            }
            _ => op,
        };
        (op.argument.len() <= MAX_NAME).then_some(op)
    }

    /// The index in `entries` of the entry that a GET reads.
    pub(super) fn got(&self, get: &Op<'_>) -> Option<u32> {
        get.index()?.checked_sub(self.first_index)
    }
}

/// An item on the stack.
struct Item {
    span: Span,
    /// Its index in the entries of the memo, if it is in the memo.
    entry: Option<u32>,
    /// How deeply it is nested.
    depth: u16,
    kind: Kind,
    /// Whether its opcode only gets it from the memo.
    is_got: bool,
}

impl Item {
    /// The offset at which its bytes begin, and the kind of object that they build.
    fn value(&self) -> (u32, Kind) {
        (self.span.start, if self.is_got { Kind::Other } else { self.kind })
    }
}

/// The state of the walk: the stack and the memo.
#[derive(Default)]
struct Walk<'body> {
    stack: Vec<Item>,
    /// The indices of the marks on the stack.
    marks: Vec<usize>,
    /// The two opcodes before this one.
    before: [u8; 2],
    program: Program<'body>,
}

impl<'body> Walk<'body> {
    /// Follows one opcode. The error says what is wrong with it.
    fn step(&mut self, op: &Op<'body>) -> Result<(), &'static str> {
        match op.effect {
            StackEffect::Protocol if op.argument[0] > HIGHEST_PROTOCOL => {
                return Err("an unknown protocol");
            }
            StackEffect::Frame => {
                let rest = self.program.body.len() - op.end as usize;
                if little_endian(op.argument) > rest as u64 {
                    return Err("a frame is cut off");
                }
            }
            StackEffect::Push(kind) => {
                let is_utf8 = matches!(op.code, BINUNICODE | SHORT_BINUNICODE | BINUNICODE8);
                if is_utf8 && !text::is_utf8(op.argument) {
                    return Err("invalid UTF-8 in a text");
                }
                if kind == Kind::Mark {
                    self.marks.push(self.stack.len());
                }
                let depth = u16::from(!matches!(kind, Kind::Mark | Kind::Scalar));
                self.push(op.start, op.end, kind, depth);
            }
            StackEffect::Fold(count) => {
                let first = self.operands(count)?;
                self.fold(first, Kind::Other, op.end);
            }
            StackEffect::FoldMarked(kind) => {
                let mark = self.last_mark()?;
                self.record(kind, mark, mark + 1)?;
                self.fold(mark, kind, op.end);
            }
            StackEffect::Add(kind, count) => {
                let target = self.operands(count + 1)?;
                self.add(kind, target, target + 1, op.end)?;
            }
            StackEffect::AddMarked(kind) => {
                let mark = self.last_mark()?;
                let target = self.operands(self.stack.len() - mark + 1)?;
                self.add(kind, target, mark + 1, op.end)?;
            }
            StackEffect::Pop if self.stack.last().is_some_and(|top| top.kind == Kind::Mark) => {
                self.marks.pop();
                self.stack.pop();
            }
            StackEffect::Pop => {
                let first = self.operands(1)?;
                self.stack.truncate(first);
                // A call with two arguments whose result is popped sets the state of the item below
                // (`save_reduce` in `Lib/pickle.py`, Python 3.13).
                if self.before == [TUPLE2, REDUCE] && first > 0 {
                    self.touch(first - 1, op.end);
                }
            }
            StackEffect::PopMark => {
                let mark = self.last_mark()?;
                self.stack.truncate(mark);
            }
            StackEffect::Get => {
                let entry = self.program.got(op);
                let got = entry.and_then(|entry| self.program.entries.get(entry as usize));
                let &Entry { depth, kind, .. } = got.ok_or("it is not in the memo")?;
                let span = Span { start: op.start, end: op.end };
                self.stack.push(Item { span, entry, depth, kind, is_got: true });
            }
            StackEffect::Put => self.put(op)?,
            StackEffect::Stop if self.operands(1)? > 0 => {
                return Err("something is left on the stack");
            }
            StackEffect::Protocol | StackEffect::Stop => {}
        }
        self.before = [self.before[1], op.code];
        Ok(())
    }

    fn push(&mut self, start: u32, end: u32, kind: Kind, depth: u16) {
        let span = Span { start, end };
        self.stack.push(Item { span, entry: None, depth, kind, is_got: false });
    }

    /// The index of the first of the topmost `count` items, which must all be above the last mark.
    fn operands(&self, count: usize) -> Result<usize, &'static str> {
        let floor = self.marks.last().map_or(0, |mark| mark + 1);
        let first = self.stack.len().checked_sub(count).filter(|&first| first >= floor);
        first.ok_or("there is too little on the stack")
    }

    /// Removes the last mark from the list of marks, but not from the stack, and returns its index.
    fn last_mark(&mut self) -> Result<usize, &'static str> {
        self.marks.pop().ok_or("there is no mark")
    }

    /// Removes the items from this index on from the stack, and returns the depth of a container
    /// that contains them.
    fn take(&mut self, first: usize) -> u16 {
        let depth = self.stack.drain(first..).map(|item| item.depth).max();
        depth.unwrap_or(0).saturating_add(1)
    }

    /// Replaces the items from this index on by one item.
    fn fold(&mut self, first: usize, kind: Kind, end: u32) {
        let start = self.stack[first].span.start;
        let depth = self.take(first);
        self.push(start, end, kind, depth);
    }

    /// Adds the items from `first` on to the item at `target`, as to a container of this kind.
    fn add(
        &mut self,
        kind: Kind,
        target: usize,
        first: usize,
        end: u32,
    ) -> Result<(), &'static str> {
        if kind == Kind::Dict || self.stack[target].kind == kind {
            self.record(kind, target, first)?;
        }
        let depth = self.take(target + 1);
        let item = &mut self.stack[target];
        item.depth = item.depth.max(depth);
        self.touch(target, end);
        Ok(())
    }

    /// Records that an opcode which ends at this offset changes an item.
    fn touch(&mut self, place: usize, end: u32) {
        let item = &mut self.stack[place];
        item.span.end = end;
        if item.is_got {
            // The bytes that build it are elsewhere and do not include this change.
            self.program.is_entangled = true;
        } else if let Some(entry) = item.entry {
            let entry = &mut self.program.entries[entry as usize];
            entry.span.end = end;
            entry.depth = item.depth;
        }
    }

    /// Stores the elements of the outermost list, or the keys and values of a dict that is the
    /// outermost object or can be an element of the outermost list.
    fn record(&mut self, kind: Kind, target: usize, first: usize) -> Result<(), &'static str> {
        let items = &self.stack[first..];
        let program = &mut self.program;
        if kind == Kind::Dict {
            if items.len() % 2 == 1 {
                return Err("a key has no value");
            }
            let root = self.stack[0].kind;
            let is_element = matches!(root, Kind::List | Kind::Mark) && self.marks.len() <= 1;
            if target > 0 && !is_element {
                return Ok(());
            }
            let dict = self.stack[target].span.start;
            for [key, value] in items.as_chunks().0 {
                let made = |item: &Item| match item.entry {
                    Some(entry) => program.entries[entry as usize].span,
                    None => item.span,
                };
                let (key_kind, key) = (key.kind, made(key).start);
                let is_name = |op: Op<'_>| op.argument.len() <= MAX_NAME;
                if key_kind == Kind::Scalar && program.op(key).is_some_and(is_name) {
                    let (kind, made) = (value.kind, made(value));
                    program.pairs.push(Pair { dict, key, value: value.span, kind, made });
                }
            }
        } else if kind == Kind::List && target == 0 {
            program.elements.extend(items.iter().map(Item::value));
        }
        Ok(())
    }

    fn put(&mut self, op: &Op<'_>) -> Result<(), &'static str> {
        let place = self.operands(1)?;
        let Program { entries, first_index, is_entangled, .. } = &mut self.program;
        let number = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let index = if op.code == MEMOIZE { Some(number) } else { op.index() };
        if number == 0 {
            *first_index = index.unwrap_or(0);
        }
        if index.is_none() || index != first_index.checked_add(number) {
            return Err("the memo is out of order");
        }
        let item = &mut self.stack[place];
        let &mut Item { mut span, depth, kind, .. } = item;
        if let Some(before) = item.entry {
            // No pickler puts an object into the memo twice.
            *is_entangled = true;
            span = entries[before as usize].span;
        }
        entries.push(Entry { span, put: op.start, depth, kind });
        item.entry = Some(number);
        self.touch(place, op.end);
        Ok(())
    }

    /// The program, after its opcodes up to STOP have been followed.
    fn finish(mut self, stop: u32) -> Program<'body> {
        self.program.root = self.stack[0].value();
        self.program.pairs.sort_by_key(|pair| pair.dict);
        self.program.body = &self.program.body[..stop as usize];
        self.program
    }
}

pub(super) fn malformed(problem: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format: "pickle", problem, position }
}
