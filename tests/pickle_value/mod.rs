//! Describes the value that a pickle loads to as a text. Two pickles have the same text exactly if
//! they load to equal objects with the same shared parts. Nothing is executed except
//! `operator.getitem` of a dict; other calls only become part of the text.
//!
//! It is independent of Celeriac's decoder, so that it can check it.

use std::collections::HashMap;
use std::fmt::Write;

/// An object: what it is, and its parts, each with the opcode that added it.
struct Node {
    label: String,
    parts: Vec<(u8, usize)>,
}

/// The objects that a pickle builds.
pub(crate) struct Objects {
    nodes: Vec<Node>,
    root: usize,
}

/// A label that is longer than this is written once and referred to after that.
const SHORT: usize = 64;

impl Objects {
    /// Builds what a pickle builds; nothing where it is malformed.
    pub(crate) fn load(pickle: &[u8]) -> Option<Self> {
        let mut nodes = Vec::<Node>::new();
        let mut stack = Vec::<usize>::new();
        let mut marks = Vec::<usize>::new();
        let mut memo = HashMap::<u64, usize>::new();
        let mut before = [0; 2];
        let mut rest = pickle;
        loop {
            let (&code, after) = rest.split_first()?;
            let (argument, after) = argument(code, after)?;
            rest = after;
            let floor = marks.last().copied().unwrap_or(0);
            match code {
                b'.' => {
                    let root = stack.pop().filter(|_| stack.is_empty())?;
                    return Some(Self { nodes, root });
                }
                0x80 | 0x95 => continue,
                b'(' => marks.push(stack.len()),
                b'0' if marks.last() == Some(&stack.len()) => drop(marks.pop()),
                b'0' => {
                    let popped = stack.pop()?;
                    // The state of an object is set by a call whose result is thrown away.
                    if before == [0x86, b'R']
                        && let Some(&top) = stack.last()
                        && let Some(&(_, arguments)) = nodes[popped].parts.get(1)
                        && nodes[arguments].parts.first() == Some(&(b't', top))
                    {
                        nodes[top].parts.push((b'R', popped));
                    }
                }
                b'1' => stack.truncate(marks.pop()?),
                b'g' | b'h' | b'j' => stack.push(*memo.get(&index(code, argument)?)?),
                b'p' | b'q' | b'r' => drop(memo.insert(index(code, argument)?, *stack.last()?)),
                0x94 => drop(memo.insert(memo.len() as u64, *stack.last()?)),
                // What adds items, or a state, to the object below them.
                b'a' | b'b' | b's' | b'e' | b'u' | 0x90 => {
                    let first = match code {
                        b'a' | b'b' => stack.len().checked_sub(1)?,
                        b's' => stack.len().checked_sub(2)?,
                        _ => marks.pop()?,
                    };
                    let tag = match code {
                        b'b' => b'b',
                        b's' | b'u' => b's',
                        _ => b'a',
                    };
                    let items = stack.split_off(first);
                    let target = *stack.last()?;
                    nodes[target].parts.extend(items.into_iter().map(|item| (tag, item)));
                }
                _ => {
                    let first = match code {
                        0x85 => stack.len().checked_sub(1)?,
                        0x86 | b'R' | 0x81 | 0x93 => stack.len().checked_sub(2)?,
                        0x87 | 0x92 => stack.len().checked_sub(3)?,
                        b't' | b'l' | b'd' | b'i' | b'o' | 0x91 => marks.pop()?,
                        _ => stack.len(),
                    };
                    let tag = match code {
                        b'l' => b'a',
                        b'd' => b's',
                        _ => b't',
                    };
                    let parts = stack.split_off(first);
                    let parts = parts.into_iter().map(|part| (tag, part)).collect();
                    let node = Node { label: label(code, argument), parts };
                    let made = item(&nodes, &node);
                    stack.push(made.unwrap_or(nodes.len()));
                    nodes.push(node);
                }
            }
            if stack.len() < floor {
                return None;
            }
            before = [before[1], code];
        }
    }

    /// The text of all that was built.
    pub(crate) fn text(&self) -> String {
        self.text_of(self.root)
    }

    /// The text of the value that a dict has under a key.
    pub(crate) fn member(&self, name: &str) -> Option<String> {
        find(&self.nodes, self.root, &format!("text {name}")).map(|node| self.text_of(node))
    }

    fn text_of(&self, root: usize) -> String {
        let mut text = String::new();
        let mut numbers = HashMap::new();
        let mut open = vec![(b' ', Some(root))];
        while let Some((tag, node)) = open.pop() {
            let Some(node) = node else {
                text.push(')');
                continue;
            };
            let number = numbers.len();
            let Node { label, parts } = &self.nodes[node];
            let _ = write!(text, "{}", char::from(tag));
            if parts.is_empty() && label.len() <= SHORT && !is_mutable(label) {
                let _ = write!(text, "{label:?}");
            } else if let Some(known) = numbers.get(&node) {
                let _ = write!(text, "#{known}");
            } else {
                numbers.insert(node, number);
                let _ = write!(text, "{label:?}(");
                open.push((b' ', None));
                open.extend(parts.iter().rev().map(|&(tag, part)| (tag, Some(part))));
            }
        }
        text
    }
}

fn is_mutable(label: &str) -> bool {
    ["list", "dict", "set"].contains(&label)
}

/// The value of a dict under a key.
fn find(nodes: &[Node], dict: usize, key: &str) -> Option<usize> {
    let Node { label, parts } = &nodes[dict];
    let mut pairs = parts.as_chunks().0.iter().rev();
    let [_, (_, value)] = pairs.find(|[(_, name), _]| nodes[*name].label == key)?;
    (label == "dict").then_some(*value)
}

/// What a call of `operator.getitem` with a dict and its key returns.
fn item(nodes: &[Node], call: &Node) -> Option<usize> {
    let [(_, function), (_, arguments)] = call.parts[..] else { return None };
    if call.label != "R" || nodes[function].label != "global operator getitem" {
        return None;
    }
    let [(_, dict), (_, key)] = nodes[arguments].parts[..] else { return None };
    find(nodes, dict, &nodes[key].label)
}

/// What an opcode makes.
fn label(code: u8, argument: &[u8]) -> String {
    let shown = argument.escape_ascii().to_string();
    match code {
        b'X' | 0x8C | 0x8D | b'U' | b'T' | b'V' => format!("text {shown}"),
        b'S' => format!("text {}", shown.trim_matches(['\\', '\'', '"'])),
        b'B' | b'C' | 0x8E => format!("bytes {shown}"),
        b'c' => format!("global {}", shown.replace("\\n", " ")),
        b']' | b'l' => "list".to_owned(),
        b'}' | b'd' => "dict".to_owned(),
        b')' | b't' | 0x85..=0x87 => "tuple".to_owned(),
        0x8F => "set".to_owned(),
        _ if argument.is_empty() => char::from(code).to_string(),
        _ => format!("{} {shown}", char::from(code)),
    }
}

fn index(code: u8, argument: &[u8]) -> Option<u64> {
    match code {
        b'g' | b'p' => std::str::from_utf8(argument).ok()?.parse().ok(),
        _ => Some(number(argument)),
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The argument of an opcode, and what follows it.
fn argument(code: u8, rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let lines = |count: usize| {
        let mut ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let (end, _) = ends.nth(count - 1)?;
        Some((&rest[..end], &rest[end + 1..]))
    };
    let counted = |width: usize| {
        let (length, rest) = rest.split_at_checked(width)?;
        rest.split_at_checked(usize::try_from(number(length)).ok()?)
    };
    match code {
        b'F' | b'I' | b'L' | b'S' | b'V' | b'g' | b'p' => lines(1),
        b'c' | b'i' => lines(2),
        b'K' | b'h' | b'q' | 0x80 | 0x82 => rest.split_at_checked(1),
        b'M' | 0x83 => rest.split_at_checked(2),
        b'J' | b'j' | b'r' | 0x84 => rest.split_at_checked(4),
        b'G' | 0x95 => rest.split_at_checked(8),
        b'C' | b'U' | 0x8A | 0x8C => counted(1),
        b'B' | b'T' | b'X' | 0x8B => counted(4),
        0x8D | 0x8E | 0x96 => counted(8),
        _ => Some((&[], rest)),
    }
}
