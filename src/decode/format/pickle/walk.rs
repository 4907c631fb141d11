//! Following the opcodes of a body without doing what they say.
//!
//! Each item on the stack is known by the bytes that made it: from the end of the item below it
//! to where it was last touched. What was pushed and popped in between belongs to it: Python
//! writes the elements of a recursive tuple, takes them away and gets the tuple from the memo
//! (`save_tuple` in `Lib/pickle.py`, Python 3.13).

use std::cell::OnceCell;

use crate::decode::DecodeError;
use crate::decode::format::pickle::opcode as op;
use crate::decode::format::pickle::opcode::Op;
use crate::decode::format::pickle::program::{
    Entry, Kind, Pair, Program, Span, Whole, malformed, offset,
};
use crate::decode::format::pickle::text;

/// The highest protocol there is.
const HIGHEST_PROTOCOL: u8 = 5;

/// Follows a body in which values nest at most so deep, not counting the `outer` levels that
/// hold them.
pub(super) fn read(
    body: &[u8],
    max_depth: usize,
    outer: usize,
) -> Result<Program<'_>, DecodeError> {
    if u32::try_from(body.len()).is_err() {
        return Err(DecodeError::BodyTooLarge { limit: u32::MAX as usize });
    }
    let mut walk = Walk::new(u16::try_from(max_depth.saturating_add(outer)).unwrap_or(u16::MAX));
    let mut position = 0;
    loop {
        let found = Op::read(body, position)
            .map_err(Problem::Malformed)
            .and_then(|op| walk.step(&op, body.len()).map(|()| op));
        match found {
            Ok(op) if op.code == op::STOP => return Ok(walk.finish(&body[..op.start])),
            Ok(op) => position = op.end,
            Err(Problem::Malformed(problem)) => return Err(malformed(problem, position)),
            Err(Problem::TooDeep) => return Err(DecodeError::TooDeep { limit: max_depth }),
        }
    }
}

struct Item {
    /// Where the bytes end that made it. They begin where those of the item below end.
    end: u32,
    /// What of the memo it is.
    entry: Option<u32>,
    /// How deep it nests.
    depth: u16,
    kind: Kind,
}

enum Problem {
    Malformed(&'static str),
    TooDeep,
}

impl From<&'static str> for Problem {
    fn from(problem: &'static str) -> Self {
        Self::Malformed(problem)
    }
}

const UNDERFLOW: Problem = Problem::Malformed("there is too little on the stack");

/// The stack and the memo on the way.
struct Walk {
    max_depth: u16,
    stack: Vec<Item>,
    /// The places of the marks in the stack.
    marks: Vec<u32>,
    entries: Vec<Entry>,
    first_index: u32,
    pairs: Vec<Pair>,
    elements: Vec<(Span, Kind)>,
    protocol: Option<u8>,
    is_plain: bool,
    /// The two opcodes before this one.
    before: [u8; 2],
    /// Whether the last opcodes have only popped something.
    has_popped: bool,
    rebuilt: Vec<Whole>,
    frame_end: usize,
}

impl Walk {
    fn new(max_depth: u16) -> Self {
        Self {
            max_depth,
            stack: Vec::new(),
            marks: Vec::new(),
            entries: Vec::new(),
            first_index: 0,
            pairs: Vec::new(),
            elements: Vec::new(),
            protocol: None,
            is_plain: true,
            before: [op::PROTO; 2],
            has_popped: false,
            rebuilt: Vec::new(),
            frame_end: 0,
        }
    }

    /// Follows one opcode of a body of this length.
    fn step(&mut self, op: &Op<'_>, length: usize) -> Result<(), Problem> {
        match op.code {
            op::PROTO => return self.protocol(op),
            op::FRAME => return self.frame(op, length),
            op::POP | op::POP_MARK => {}
            _ => self.settle_popped(op),
        }
        self.apply(op)?;
        self.before = [self.before[1], op.code];
        Ok(())
    }

    fn protocol(&mut self, op: &Op<'_>) -> Result<(), Problem> {
        match *op.argument {
            [protocol @ 0..=HIGHEST_PROTOCOL] if op.start == 0 => {
                self.protocol = Some(protocol);
                Ok(())
            }
            _ => Err("a protocol that is unknown or not at the beginning".into()),
        }
    }

    fn frame(&mut self, op: &Op<'_>, length: usize) -> Result<(), Problem> {
        let frame = usize::try_from(op::little_endian(op.argument)).unwrap_or(usize::MAX);
        if op.start < self.frame_end || frame == 0 {
            return Err("a frame is empty or in a frame".into());
        }
        if frame > length - op.end {
            return Err("a frame is cut off".into());
        }
        self.frame_end = op.end + frame;
        Ok(())
    }

    /// Does to the stack and the memo what an opcode does.
    fn apply(&mut self, op: &Op<'_>) -> Result<(), Problem> {
        let end = offset(op.end);
        match op.code {
            op::NONE
            | op::NEWTRUE
            | op::NEWFALSE
            | op::INT
            | op::BININT
            | op::BININT1
            | op::BININT2
            | op::LONG
            | op::LONG1
            | op::LONG4
            | op::FLOAT
            | op::BINFLOAT
            | op::STRING
            | op::UNICODE
            | op::BINSTRING
            | op::SHORT_BINSTRING
            | op::BINBYTES
            | op::SHORT_BINBYTES
            | op::BINBYTES8
            | op::BYTEARRAY8
            | op::GLOBAL
            | op::EXT1
            | op::EXT2
            | op::EXT4 => self.push(Kind::Other, 0, end),
            op::BINUNICODE | op::SHORT_BINUNICODE | op::BINUNICODE8 => {
                text::check(op.argument).ok_or("invalid UTF-8 in a text")?;
                self.push(Kind::Other, 0, end)
            }
            op::EMPTY_LIST => self.push(Kind::List, 1, end),
            op::EMPTY_DICT => self.push(Kind::Dict, 1, end),
            op::EMPTY_TUPLE | op::EMPTY_SET => self.push(Kind::Other, 1, end),
            op::MARK => {
                self.marks.push(offset(self.stack.len()));
                self.push(Kind::Mark, 0, end)
            }
            op::TUPLE1 => self.fold(1, end),
            op::TUPLE2 | op::STACK_GLOBAL | op::REDUCE | op::NEWOBJ => self.fold(2, end),
            op::TUPLE3 | op::NEWOBJ_EX => self.fold(3, end),
            op::TUPLE | op::FROZENSET | op::INST | op::OBJ | op::LIST | op::DICT => {
                self.fold_to_mark(op.code, end)
            }
            op::APPEND | op::BUILD => {
                let first = self.operands(1)?;
                self.add(op.code, first, first, end)
            }
            op::SETITEM => {
                let first = self.operands(2)?;
                self.add(op.code, first, first, end)
            }
            op::APPENDS | op::SETITEMS | op::ADDITEMS => {
                let mark = self.last_mark()?;
                self.add(op.code, mark, mark + 1, end)
            }
            op::POP if self.stack.last().is_some_and(|top| top.kind == Kind::Mark) => {
                self.marks.pop();
                self.stack.pop();
                Ok(())
            }
            op::POP => {
                let first = self.operands(1)?;
                self.consume(first);
                // A call with a pair that is not in the memo sets the state of the item below
                // (`save_reduce` in `Lib/pickle.py`, Python 3.13).
                match self.stack.last_mut() {
                    Some(top) if self.before == [op::TUPLE2, op::REDUCE] => top.end = end,
                    _ => self.has_popped = true,
                }
                Ok(())
            }
            op::POP_MARK => {
                let mark = self.last_mark()?;
                self.consume(mark);
                self.has_popped = true;
                Ok(())
            }
            op::GET | op::BINGET | op::LONG_BINGET => self.get(op),
            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.put(op),
            op::STOP => {
                let first = self.operands(1)?;
                if first == 0 { Ok(()) } else { Err("something is left on the stack".into()) }
            }
            // Nothing that `pickle.dumps` writes has these.
            op::PERSID | op::BINPERSID => Err("a persistent id".into()),
            op::NEXT_BUFFER | op::READONLY_BUFFER => Err("a buffer outside of the body".into()),
            _ => Err("an opcode that no pickler writes".into()),
        }
    }

    /// Says whose the bytes are that pushed and popped something: those of the item that an
    /// opcode gets from the memo, where that was put there on the way, as for a recursive tuple,
    /// else those of the item below.
    fn settle_popped(&mut self, op: &Op<'_>) {
        if !std::mem::take(&mut self.has_popped) {
            return;
        }
        let start = self.end_below(self.stack.len());
        let is_from_popped = |entry: &u32| self.entries[*entry as usize].put >= start;
        let entry = if op.is_get() { self.entry(op).filter(is_from_popped) } else { None };
        if let Some(entry) = entry {
            self.rebuilt.push(Whole { start, end: offset(op.end), entry });
        } else if let Some(top) = self.stack.last_mut() {
            top.end = offset(op.start);
        }
    }

    /// Where the bytes begin of the item at a place in the stack.
    fn end_below(&self, place: usize) -> u32 {
        place.checked_sub(1).map_or(0, |below| self.stack[below].end)
    }

    fn span(&self, place: usize) -> Span {
        Span { start: self.end_below(place), end: self.stack[place].end }
    }

    fn push(&mut self, kind: Kind, depth: u16, end: u32) -> Result<(), Problem> {
        if depth > self.max_depth {
            return Err(Problem::TooDeep);
        }
        self.stack.push(Item { end, entry: None, depth, kind });
        Ok(())
    }

    /// The place of the first of the topmost items, which must all be above the last mark.
    fn operands(&self, count: usize) -> Result<usize, Problem> {
        let floor = self.marks.last().map_or(0, |&mark| mark as usize + 1);
        self.stack.len().checked_sub(count).filter(|&first| first >= floor).ok_or(UNDERFLOW)
    }

    /// Takes the last mark from the list of marks. It stays on the stack.
    fn last_mark(&mut self) -> Result<usize, Problem> {
        let mark = self.marks.pop().ok_or(Problem::Malformed("there is no mark"))?;
        Ok(mark as usize)
    }

    /// Takes items off the stack, from this place on, and tells how deep the deepest nests.
    fn consume(&mut self, first: usize) -> u16 {
        let mut depth = 0;
        for item in self.stack.drain(first..) {
            depth = depth.max(item.depth);
            let made = item.entry.filter(|_| item.kind != Kind::Known);
            if let Some(entry) = made.and_then(|entry| self.entries.get_mut(entry as usize)) {
                entry.end = item.end;
                entry.depth = item.depth;
            }
        }
        depth
    }

    /// Makes one item of the topmost ones.
    fn fold(&mut self, count: usize, end: u32) -> Result<(), Problem> {
        let first = self.operands(count)?;
        let depth = self.consume(first);
        self.push(Kind::Other, depth.saturating_add(1), end)
    }

    /// Makes one item of all that is above the last mark, and of the mark.
    fn fold_to_mark(&mut self, code: u8, end: u32) -> Result<(), Problem> {
        let mark = self.last_mark()?;
        let first = mark + 1;
        let kind = match code {
            op::LIST => Kind::List,
            op::DICT => Kind::Dict,
            _ => Kind::Other,
        };
        match code {
            op::LIST if mark == 0 => self.record_elements(first),
            op::DICT => self.record_pairs(mark, first)?,
            op::OBJ if first == self.stack.len() => return Err(UNDERFLOW),
            _ => {}
        }
        let depth = self.consume(mark);
        self.push(kind, depth.saturating_add(1), end)
    }

    /// Adds items to the one below `above`.
    fn add(&mut self, code: u8, above: usize, first: usize, end: u32) -> Result<(), Problem> {
        let floor = self.marks.last().map_or(0, |&mark| mark as usize + 1);
        let target = above.checked_sub(1).filter(|&target| target >= floor).ok_or(UNDERFLOW)?;
        match (code, self.stack[target].kind) {
            // It is made elsewhere, and differs from what is made there from here on.
            (_, Kind::Known) => self.is_plain = false,
            (op::SETITEM | op::SETITEMS, _) => self.record_pairs(target, first)?,
            (op::APPEND | op::APPENDS, Kind::List) if target == 0 => self.record_elements(first),
            _ => {}
        }
        let depth = self.consume(above).saturating_add(1);
        if depth > self.max_depth {
            return Err(Problem::TooDeep);
        }
        let target = &mut self.stack[target];
        target.depth = target.depth.max(depth);
        target.end = end;
        Ok(())
    }

    /// Keeps the keys and values from a place on, where the dict is the body's value or can be an
    /// element of it.
    fn record_pairs(&mut self, dict: usize, first: usize) -> Result<(), Problem> {
        if (self.stack.len() - first) % 2 == 1 {
            return Err("a key has no value".into());
        }
        let is_outermost = dict == 0
            || (matches!(self.stack[0].kind, Kind::List | Kind::Mark) && self.marks.len() <= 1);
        if is_outermost {
            let start = self.end_below(dict);
            for key in (first..self.stack.len()).step_by(2) {
                let pair = Pair { dict: start, key: self.span(key), value: self.span(key + 1) };
                self.pairs.push(pair);
            }
        }
        Ok(())
    }

    fn record_elements(&mut self, first: usize) {
        for place in first..self.stack.len() {
            self.elements.push((self.span(place), self.stack[place].kind));
        }
    }

    /// What of the memo an opcode gets.
    fn entry(&self, get: &Op<'_>) -> Option<u32> {
        let entry = get.index()?.checked_sub(self.first_index)?;
        (entry < offset(self.entries.len())).then_some(entry)
    }

    fn get(&mut self, op: &Op<'_>) -> Result<(), Problem> {
        let entry = self.entry(op).ok_or("it is not in the memo")?;
        let depth = self.entries[entry as usize].depth;
        self.push(Kind::Known, depth, offset(op.end))
    }

    fn put(&mut self, op: &Op<'_>) -> Result<(), Problem> {
        let place = self.operands(1)?;
        let entry = offset(self.entries.len());
        match (op.code, op.index()) {
            (op::MEMOIZE, _) if self.first_index == 0 => {}
            (op::MEMOIZE, _) | (_, None) => return Err("the memo is out of order".into()),
            (_, Some(index)) if entry == 0 => self.first_index = index,
            (_, Some(index)) if Some(index) == self.first_index.checked_add(entry) => {}
            _ => return Err("the memo is out of order".into()),
        }
        let start = self.end_below(place);
        let item = &mut self.stack[place];
        if item.kind == Kind::Known || item.entry.is_some() {
            self.is_plain = false;
        }
        if let Some(earlier) = item.entry.and_then(|entry| self.entries.get_mut(entry as usize)) {
            earlier.end = item.end;
        }
        self.entries.push(Entry { start, put: offset(op.start), end: item.end, depth: item.depth });
        item.entry = Some(entry);
        item.end = offset(op.end);
        if item.kind == Kind::Known {
            item.kind = Kind::Other;
        }
        Ok(())
    }

    /// What was built, of all opcodes but STOP.
    fn finish(mut self, body: &[u8]) -> Program<'_> {
        let root = self.stack.first().map_or(Kind::Other, |root| root.kind);
        self.consume(0);
        self.pairs.sort_by_key(|pair| pair.dict);
        let is_text = body.first() == Some(&op::MARK);
        Program {
            body,
            protocol: self.protocol.unwrap_or(u8::from(!is_text)),
            root,
            elements: self.elements,
            is_plain: self.is_plain,
            pairs: self.pairs,
            entries: self.entries,
            first_index: self.first_index,
            rebuilt: self.rebuilt,
            wholes: OnceCell::new(),
        }
    }
}
