//! The opcodes of pickle: the length of each one and its effect on the stack (`Lib/pickletools.py`,
//! Python 3.13).

pub(super) const POP: u8 = b'0';
pub(super) const FLOAT: u8 = b'F';
pub(super) const INT: u8 = b'I';
pub(super) const BININT: u8 = b'J';
pub(super) const BININT1: u8 = b'K';
pub(super) const LONG: u8 = b'L';
pub(super) const BININT2: u8 = b'M';
pub(super) const NONE: u8 = b'N';
pub(super) const REDUCE: u8 = b'R';
pub(super) const STOP: u8 = b'.';
pub(super) const STRING: u8 = b'S';
pub(super) const BINSTRING: u8 = b'T';
pub(super) const SHORT_BINSTRING: u8 = b'U';
pub(super) const UNICODE: u8 = b'V';
pub(super) const BINUNICODE: u8 = b'X';
pub(super) const BINFLOAT: u8 = b'G';
pub(super) const BINGET: u8 = b'h';
pub(super) const LONG_BINGET: u8 = b'j';
pub(super) const BINPUT: u8 = b'q';
pub(super) const LONG_BINPUT: u8 = b'r';
pub(super) const PROTO: u8 = 0x80;
pub(super) const TUPLE2: u8 = 0x86;
pub(super) const NEWTRUE: u8 = 0x88;
pub(super) const SHORT_BINUNICODE: u8 = 0x8C;
pub(super) const BINUNICODE8: u8 = 0x8D;
pub(super) const MEMOIZE: u8 = 0x94;

/// The kinds of items on the stack that have to be distinguished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    Mark,
    /// A value that one opcode pushes.
    Scalar,
    Dict,
    List,
    #[default]
    Other,
}

/// The effect of an opcode on the stack and the memo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StackEffect {
    /// Pushes a mark, a scalar or an empty container.
    Push(Kind),
    /// Replaces this many items by one.
    Fold(usize),
    /// Replaces all items above the last mark, and the mark, by one.
    FoldMarked(Kind),
    /// Adds this many items to the one below them, as to a container of this kind.
    Add(Kind, usize),
    /// Adds the items above the last mark to the one below the mark, as to a container of this
    /// kind.
    AddMarked(Kind),
    Pop,
    PopMark,
    Get,
    Put,
    Protocol,
    Frame,
    Stop,
}

/// How the argument of an opcode is written.
enum Argument {
    /// In this many bytes.
    Bytes(usize),
    /// In this many lines.
    Lines(usize),
    /// After its length, which takes this many bytes.
    Counted(usize),
}

fn describe(code: u8) -> Result<(Argument, StackEffect), &'static str> {
    use Argument::{Bytes, Counted, Lines};
    use StackEffect::{Add, AddMarked, Fold, FoldMarked, Get, Push, Put};

    Ok(match code {
        b'(' => (Bytes(0), Push(Kind::Mark)),
        NONE | NEWTRUE | 0x89 => (Bytes(0), Push(Kind::Scalar)),
        // With the opcodes EXT1, EXT2 and EXT4.
        BININT1 | 0x82 => (Bytes(1), Push(Kind::Scalar)),
        BININT2 | 0x83 => (Bytes(2), Push(Kind::Scalar)),
        BININT | 0x84 => (Bytes(4), Push(Kind::Scalar)),
        BINFLOAT => (Bytes(8), Push(Kind::Scalar)),
        FLOAT | INT | LONG | STRING | UNICODE => (Lines(1), Push(Kind::Scalar)),
        // GLOBAL
        b'c' => (Lines(2), Push(Kind::Scalar)),
        // With LONG1 and SHORT_BINBYTES, LONG4 and BINBYTES, BINBYTES8 and BYTEARRAY8.
        SHORT_BINSTRING | SHORT_BINUNICODE | 0x8A | b'C' => (Counted(1), Push(Kind::Scalar)),
        BINSTRING | BINUNICODE | 0x8B | b'B' => (Counted(4), Push(Kind::Scalar)),
        BINUNICODE8 | 0x8E | 0x96 => (Counted(8), Push(Kind::Scalar)),
        // EMPTY_LIST, EMPTY_DICT, EMPTY_TUPLE, EMPTY_SET
        b']' => (Bytes(0), Push(Kind::List)),
        b'}' => (Bytes(0), Push(Kind::Dict)),
        b')' | 0x8F => (Bytes(0), Push(Kind::Other)),
        // TUPLE1; NEWOBJ, STACK_GLOBAL; TUPLE3, NEWOBJ_EX
        0x85 => (Bytes(0), Fold(1)),
        TUPLE2 | REDUCE | 0x81 | 0x93 => (Bytes(0), Fold(2)),
        0x87 | 0x92 => (Bytes(0), Fold(3)),
        // LIST; DICT; TUPLE, OBJ, FROZENSET; INST
        b'l' => (Bytes(0), FoldMarked(Kind::List)),
        b'd' => (Bytes(0), FoldMarked(Kind::Dict)),
        b't' | b'o' | 0x91 => (Bytes(0), FoldMarked(Kind::Other)),
        b'i' => (Lines(2), FoldMarked(Kind::Other)),
        // APPEND, BUILD, SETITEM; APPENDS, ADDITEMS, SETITEMS
        b'a' => (Bytes(0), Add(Kind::List, 1)),
        b'b' => (Bytes(0), Add(Kind::Other, 1)),
        b's' => (Bytes(0), Add(Kind::Dict, 2)),
        b'e' => (Bytes(0), AddMarked(Kind::List)),
        0x90 => (Bytes(0), AddMarked(Kind::Other)),
        b'u' => (Bytes(0), AddMarked(Kind::Dict)),
        POP => (Bytes(0), StackEffect::Pop),
        b'1' => (Bytes(0), StackEffect::PopMark),
        b'g' => (Lines(1), Get),
        BINGET => (Bytes(1), Get),
        LONG_BINGET => (Bytes(4), Get),
        b'p' => (Lines(1), Put),
        BINPUT => (Bytes(1), Put),
        LONG_BINPUT => (Bytes(4), Put),
        MEMOIZE => (Bytes(0), Put),
        PROTO => (Bytes(1), StackEffect::Protocol),
        0x95 => (Bytes(8), StackEffect::Frame),
        STOP => (Bytes(0), StackEffect::Stop),
        // PERSID, BINPERSID; NEXT_BUFFER, READONLY_BUFFER; DUP. A plain `pickle.dumps` writes none
        // of them.
        b'P' | b'Q' => return Err("a persistent id"),
        0x97 | 0x98 => return Err("a buffer outside of the body"),
        b'2' => return Err("an opcode that no pickler writes"),
        _ => return Err("an unknown opcode"),
    })
}

/// An opcode with its argument.
#[derive(Clone, Copy)]
pub(super) struct Op<'body> {
    pub(super) code: u8,
    pub(super) effect: StackEffect,
    /// The offset at which it begins.
    pub(super) start: u32,
    /// The offset at which the next one begins.
    pub(super) end: u32,
    /// The argument, without its length and without the newline at its end.
    pub(super) argument: &'body [u8],
}

impl<'body> Op<'body> {
    /// Reads the opcode at an offset of a body that is shorter than 4 GiB.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the opcode.
    pub(super) fn read(body: &'body [u8], start: u32) -> Result<Self, &'static str> {
        const CUT: &str = "it is cut off";
        let (&code, rest) = body.get(start as usize..).and_then(<[u8]>::split_first).ok_or(CUT)?;
        let (argument, effect) = describe(code)?;
        let (before, length, after) = match argument {
            Argument::Bytes(length) => (0, length, 0),
            Argument::Lines(count) => {
                let mut ends = rest.iter().enumerate().filter(|&(_, &byte)| byte == b'\n');
                (0, ends.nth(count - 1).ok_or(CUT)?.0, 1)
            }
            Argument::Counted(width) => {
                let length = little_endian(rest.get(..width).ok_or(CUT)?);
                (width, usize::try_from(length).map_err(|_| CUT)?, 0)
            }
        };
        let argument = rest.get(before..).and_then(|rest| rest.get(..length)).ok_or(CUT)?;
        let end = start + 1 + u32::try_from(before + length + after).map_err(|_| CUT)?;
        Ok(Self { code, effect, start, end, argument })
    }

    /// The number in the memo that is the argument of a GET or a PUT (but not of MEMOIZE, which has
    /// none).
    pub(super) fn index(&self) -> Option<u32> {
        match self.code {
            b'g' | b'p' => std::str::from_utf8(self.argument).ok()?.parse().ok(),
            _ => u32::try_from(little_endian(self.argument)).ok(),
        }
    }
}

/// The value of at most eight bytes in little-endian order.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
