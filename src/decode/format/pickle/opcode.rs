//! The opcodes of pickle, and how long each is (`Lib/pickletools.py`, Python 3.13).

pub(super) const MARK: u8 = b'(';
pub(super) const STOP: u8 = b'.';
pub(super) const POP: u8 = b'0';
pub(super) const POP_MARK: u8 = b'1';
pub(super) const DUP: u8 = b'2';
pub(super) const FLOAT: u8 = b'F';
pub(super) const INT: u8 = b'I';
pub(super) const BININT: u8 = b'J';
pub(super) const BININT1: u8 = b'K';
pub(super) const LONG: u8 = b'L';
pub(super) const BININT2: u8 = b'M';
pub(super) const NONE: u8 = b'N';
pub(super) const PERSID: u8 = b'P';
pub(super) const BINPERSID: u8 = b'Q';
pub(super) const REDUCE: u8 = b'R';
pub(super) const STRING: u8 = b'S';
pub(super) const BINSTRING: u8 = b'T';
pub(super) const SHORT_BINSTRING: u8 = b'U';
pub(super) const UNICODE: u8 = b'V';
pub(super) const BINUNICODE: u8 = b'X';
pub(super) const APPEND: u8 = b'a';
pub(super) const BUILD: u8 = b'b';
pub(super) const GLOBAL: u8 = b'c';
pub(super) const DICT: u8 = b'd';
pub(super) const EMPTY_DICT: u8 = b'}';
pub(super) const APPENDS: u8 = b'e';
pub(super) const GET: u8 = b'g';
pub(super) const BINGET: u8 = b'h';
pub(super) const INST: u8 = b'i';
pub(super) const LONG_BINGET: u8 = b'j';
pub(super) const LIST: u8 = b'l';
pub(super) const EMPTY_LIST: u8 = b']';
pub(super) const OBJ: u8 = b'o';
pub(super) const PUT: u8 = b'p';
pub(super) const BINPUT: u8 = b'q';
pub(super) const LONG_BINPUT: u8 = b'r';
pub(super) const SETITEM: u8 = b's';
pub(super) const TUPLE: u8 = b't';
pub(super) const EMPTY_TUPLE: u8 = b')';
pub(super) const SETITEMS: u8 = b'u';
pub(super) const BINFLOAT: u8 = b'G';
pub(super) const PROTO: u8 = 0x80;
pub(super) const NEWOBJ: u8 = 0x81;
pub(super) const EXT1: u8 = 0x82;
pub(super) const EXT2: u8 = 0x83;
pub(super) const EXT4: u8 = 0x84;
pub(super) const TUPLE1: u8 = 0x85;
pub(super) const TUPLE2: u8 = 0x86;
pub(super) const TUPLE3: u8 = 0x87;
pub(super) const NEWTRUE: u8 = 0x88;
pub(super) const NEWFALSE: u8 = 0x89;
pub(super) const LONG1: u8 = 0x8A;
pub(super) const LONG4: u8 = 0x8B;
pub(super) const BINBYTES: u8 = b'B';
pub(super) const SHORT_BINBYTES: u8 = b'C';
pub(super) const SHORT_BINUNICODE: u8 = 0x8C;
pub(super) const BINUNICODE8: u8 = 0x8D;
pub(super) const BINBYTES8: u8 = 0x8E;
pub(super) const EMPTY_SET: u8 = 0x8F;
pub(super) const ADDITEMS: u8 = 0x90;
pub(super) const FROZENSET: u8 = 0x91;
pub(super) const NEWOBJ_EX: u8 = 0x92;
pub(super) const STACK_GLOBAL: u8 = 0x93;
pub(super) const MEMOIZE: u8 = 0x94;
pub(super) const FRAME: u8 = 0x95;
pub(super) const BYTEARRAY8: u8 = 0x96;
pub(super) const NEXT_BUFFER: u8 = 0x97;
pub(super) const READONLY_BUFFER: u8 = 0x98;

/// An opcode with its argument.
#[derive(Clone, Copy)]
pub(super) struct Op<'body> {
    pub(super) code: u8,
    /// Where it begins.
    pub(super) start: usize,
    /// Where the next one begins.
    pub(super) end: usize,
    /// The argument, without its length and without the end of its last line.
    pub(super) argument: &'body [u8],
}

impl<'body> Op<'body> {
    /// Reads the opcode at a position.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub(super) fn read(body: &'body [u8], start: usize) -> Result<Self, &'static str> {
        const CUT: &str = "it is cut off";
        let code = *body.get(start).ok_or(CUT)?;
        let rest = &body[start + 1..];
        let (head, length) = match code {
            FLOAT | INT | LONG | PERSID | STRING | UNICODE | GET | PUT => {
                (0, line(rest).ok_or(CUT)?)
            }
            GLOBAL | INST => {
                let module = line(rest).ok_or(CUT)? + 1;
                (0, module + line(&rest[module..]).ok_or(CUT)?)
            }
            BININT1 | BINGET | BINPUT | EXT1 | PROTO => (0, 1),
            BININT2 | EXT2 => (0, 2),
            BININT | LONG_BINGET | LONG_BINPUT | EXT4 => (0, 4),
            BINFLOAT | FRAME => (0, 8),
            LONG1 | SHORT_BINSTRING | SHORT_BINBYTES | SHORT_BINUNICODE => {
                (1, length(rest, 1).ok_or(CUT)?)
            }
            LONG4 | BINSTRING | BINBYTES | BINUNICODE => (4, length(rest, 4).ok_or(CUT)?),
            BINBYTES8 | BINUNICODE8 | BYTEARRAY8 => (8, length(rest, 8).ok_or(CUT)?),
            MARK | STOP | POP | POP_MARK | DUP | NONE | BINPERSID | REDUCE | APPEND | BUILD
            | DICT | EMPTY_DICT | APPENDS | LIST | EMPTY_LIST | OBJ | SETITEM | TUPLE
            | EMPTY_TUPLE | SETITEMS | NEWOBJ | TUPLE1 | TUPLE2 | TUPLE3 | NEWTRUE | NEWFALSE
            | EMPTY_SET | ADDITEMS | FROZENSET | NEWOBJ_EX | STACK_GLOBAL | MEMOIZE
            | NEXT_BUFFER | READONLY_BUFFER => (0, 0),
            _ => return Err("an unknown opcode"),
        };
        let argument = rest.get(head..).and_then(|rest| rest.get(..length)).ok_or(CUT)?;
        let is_line = matches!(
            code,
            FLOAT | INT | LONG | PERSID | STRING | UNICODE | GET | PUT | GLOBAL | INST
        );
        let end = start + 1 + head + length + usize::from(is_line);
        Ok(Self { code, start, end, argument })
    }

    /// Its bytes in the body.
    pub(super) fn bytes<'any>(&self, body: &'any [u8]) -> &'any [u8] {
        &body[self.start..self.end]
    }

    /// The number that a GET or a PUT has.
    pub(super) fn index(&self) -> Option<u32> {
        match self.code {
            GET | PUT => std::str::from_utf8(self.argument).ok()?.parse().ok(),
            _ => u32::try_from(little_endian(self.argument)).ok(),
        }
    }

    /// Whether it puts the top of the stack into the memo.
    pub(super) fn is_put(&self) -> bool {
        matches!(self.code, PUT | BINPUT | LONG_BINPUT | MEMOIZE)
    }

    /// Whether it takes something out of the memo.
    pub(super) fn is_get(&self) -> bool {
        matches!(self.code, GET | BINGET | LONG_BINGET)
    }

    /// Whether it says something of the bytes only and nothing of the value.
    pub(super) fn is_about_bytes(&self) -> bool {
        matches!(self.code, PROTO | FRAME)
    }
}

/// The length of the first line.
fn line(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b'\n')
}

/// The length that is written in so many bytes.
fn length(bytes: &[u8], width: usize) -> Option<usize> {
    usize::try_from(little_endian(bytes.get(..width)?)).ok()
}

/// The number that at most eight bytes are.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
