//! Damages bytes at random, in the same way for the same seed.

/// Steele, Lea and Flood's `SplitMix64`.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below another, which is not 0.
    #[expect(clippy::cast_possible_truncation, reason = "it is below a `usize`")]
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of several items.
    pub(crate) fn pick<'items, T>(&mut self, items: &'items [T]) -> &'items T {
        &items[self.below(items.len())]
    }

    /// A random range of this many bytes, usually a short one.
    fn part(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let longest = if self.below(4) == 0 { length } else { 16 };
        let end = start + self.below((length - start).min(longest) + 1);
        start..end
    }
}

/// Bytes that have a meaning in one of the formats.
pub(crate) const WORDS: &[&[u8]] = &[
    b"\0",
    b"\x7F",
    b"\x80",
    b"\xFF",
    b"\xC1",
    b"\xF0\x9F\x98\x80",
    b"\xED\xA0\x80",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud800",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\"task_id\": ",
    b"\"stamped_headers\": [\"name\"], ",
    b"\"timestamp\": ",
    b"\n",
    b"\n  ",
    b"- ",
    b": ",
    b"? ",
    b"&id001 ",
    b"*id001",
    b"!!binary |\n",
    b"!!python/object:os.system ",
    b"<<: ",
    b"'",
    b"|\n",
    b">-\n",
    b"---\n",
    b"...\n",
    b"#",
    b"%YAML 1.1\n",
    b"~",
    b"\xC2\x85",
    b"\xE2\x80\xA8",
    b"\x80\x04",
    b"\x80\x05",
    b"\x95",
    b"(",
    b".",
    b"}",
    b"]",
    b")",
    b"\x94",
    b"h\0",
    b"j\0\0\0\0",
    b"q\0",
    b"p0\n",
    b"g0\n",
    b"K\0",
    b"\x8A\x08",
    b"\x8C\x01a",
    b"X\0\0\0\0",
    b"cos\nsystem\n",
    b"\x93",
    b"R",
    b"u",
    b"s",
    b"e",
    b"a",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"0",
    b"1",
    b"2",
    b"b",
    b"\x81",
    b"\x92",
    b"\xDC\xFF\xFF",
    b"\xDF",
    b"\xDD",
    b"\xC6",
    b"\xC9",
    b"\xD4",
    b"\0\x01",
];

/// A copy of `bytes` with a few things changed; `other` is spliced into it at times.
pub(crate) fn damaged(random: &mut Random, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let part = random.part(bytes.len());
        let start = part.start;
        match random.below(9) {
            // A bit, a byte.
            0 if start < bytes.len() => bytes[start] ^= 1 << random.below(8),
            1 if start < bytes.len() => bytes[start] = random.pick(WORDS)[0],
            // Cut off, cut out.
            2 => bytes.truncate(start),
            3 => drop(bytes.drain(part)),
            // More of the same, or of something else.
            4 => {
                let count = *random.pick(&[1, 2, 16, 300]);
                let repeated = bytes[part].repeat(count);
                if repeated.len() <= 1 << 16 {
                    bytes.splice(start..start, repeated);
                }
            }
            5 => drop(bytes.splice(part, random.pick(WORDS).iter().copied())),
            6 => drop(bytes.splice(start..start, random.pick(WORDS).iter().copied())),
            7 => {
                let from = random.part(other.len());
                bytes.splice(part, other[from].iter().copied());
            }
            // A length or a count that is large, of any width, from either end.
            _ => {
                let width = *random.pick(&[1, 2, 4, 8]);
                let end = bytes.len().min(start + width);
                let large = [0xFF, 0x7F, 0x80, 0x00][random.below(4)];
                let edge = if random.below(2) == 0 { start } else { end.max(start + 1) - 1 };
                bytes[start..end].fill(if large == 0x7F { 0xFF } else { 0x00 });
                if let Some(byte) = bytes.get_mut(edge) {
                    *byte = large;
                }
            }
        }
    }
    bytes
}
