//! A document in YAML as a tree in which an alias is the node that it stands for.

use std::cell::Cell;
use std::collections::HashMap;

use super::malformed;
use super::parse::{Event, Parser};
use super::resolve::{self, Kind, Tag};
use super::scan::{Scalar, Style};
use crate::decode::{DecodeError, WireLimits};

/// The number of a node.
pub(super) type Id = usize;

/// A document. Its nodes are numbered in the order in which they begin.
pub(super) struct Document<'body> {
    nodes: Vec<Node<'body>>,
    /// How many bytes may still be written out of it; none once more was asked for. Few bytes in
    /// flow style can be many in block style, and a text with many aliases is copied many times.
    room: Cell<Option<usize>>,
}

/// A value in a document.
pub(super) struct Node<'body> {
    pub(super) tag: Tag,
    pub(super) content: Content<'body>,
    /// Whether an alias stands for it.
    pub(super) is_shared: bool,
}

/// What a node holds.
pub(super) enum Content<'body> {
    Scalar(Scalar<'body>),
    Sequence(Vec<Id>),
    Mapping(Vec<(Id, Id)>),
}

impl Content<'_> {
    fn kind(&self) -> Kind {
        match self {
            Self::Scalar(_) => Kind::Scalar,
            Self::Sequence(_) => Kind::Sequence,
            Self::Mapping(_) => Kind::Mapping,
        }
    }
}

/// A collection whose end has not come.
struct Open {
    id: Id,
    /// The key whose value comes next.
    key: Option<Id>,
    /// How many values it comes to so far.
    values: usize,
}

/// Puts a document together.
struct Composer<'body, 'limits> {
    limits: &'limits WireLimits,
    nodes: Vec<Node<'body>>,
    /// How many values each finished node comes to; 1 for one that has not ended.
    values: Vec<usize>,
    anchors: HashMap<&'body str, Id>,
    open: Vec<Open>,
}

impl<'body> Document<'body> {
    /// The root.
    pub(super) const ROOT: Id = 0;

    /// Reads a text that holds one document and nothing else.
    pub(super) fn read(text: &'body str, limits: &WireLimits) -> Result<Self, DecodeError> {
        let mut parser = Parser::new(text);
        let mut composer = Composer {
            limits,
            nodes: Vec::new(),
            values: Vec::new(),
            anchors: HashMap::new(),
            open: Vec::new(),
        };
        parser.begin()?;
        loop {
            let position = parser.position();
            composer.add(parser.next()?, position)?;
            if composer.open.is_empty() {
                break;
            }
        }
        parser.end()?;
        Ok(Self { nodes: composer.nodes, room: Cell::new(Some(room(limits))) })
    }

    pub(super) fn node(&self, id: Id) -> &Node<'body> {
        &self.nodes[id]
    }

    /// Takes so many bytes of the room; nothing where there is not so much left.
    pub(super) fn take_room(&self, bytes: usize) -> Option<()> {
        let left = self.room.get().and_then(|room| room.checked_sub(bytes));
        self.room.set(left);
        left.map(drop)
    }

    /// Refuses a document out of which more was written than there was room for.
    pub(super) fn check_room(&self, limits: &WireLimits) -> Result<(), DecodeError> {
        match self.room.get() {
            Some(_) => Ok(()),
            None => Err(DecodeError::ColumnsTooLarge { limit: room(limits) }),
        }
    }
}

/// How many bytes may be written out of a document.
fn room(limits: &WireLimits) -> usize {
    limits.body_bytes.max(limits.decompressed_bytes)
}

impl<'body> Composer<'body, '_> {
    fn add(&mut self, event: Event<'body>, position: usize) -> Result<(), DecodeError> {
        let (anchor, tag, content) = match event {
            Event::Alias(name) => {
                let problem = malformed("an alias of what is not there", position);
                let id = *self.anchors.get(name).ok_or(problem)?;
                self.nodes[id].is_shared = true;
                return self.place(id, self.values[id]);
            }
            Event::End => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                self.values[open.id] = open.values;
                let Some(parent) = self.open.last_mut() else { return Ok(()) };
                // It was counted as one value when it began.
                parent.values = parent.values.saturating_add(open.values - 1);
                let values = parent.values;
                return self.check_values(values);
            }
            Event::Scalar { anchor, tag, scalar } => (anchor, tag, Content::Scalar(scalar)),
            Event::Sequence { anchor, tag } => (anchor, tag, Content::Sequence(Vec::new())),
            Event::Mapping { anchor, tag } => (anchor, tag, Content::Mapping(Vec::new())),
        };
        let tag = tag.unwrap_or_else(|| match &content {
            Content::Scalar(scalar) if scalar.style == Style::Plain => Tag::of_plain(&scalar.text),
            Content::Scalar(_) => Tag::Str,
            Content::Sequence(_) => Tag::Seq,
            Content::Mapping(_) => Tag::Map,
        });
        if tag.kind() != content.kind() {
            return Err(malformed("a tag on a value of another kind", position));
        }
        if let (Tag::Bool, Content::Scalar(scalar)) = (tag, &content)
            && resolve::truth(&scalar.text).is_none()
        {
            return Err(malformed("a truth value that is none", position));
        }
        let tag = match tag {
            Tag::Merge | Tag::Value if !self.expects_key() => {
                return Err(malformed("`<<` or `=` where it is no key", position));
            }
            Tag::Value => Tag::Str,
            tag => tag,
        };
        let id = self.nodes.len();
        if let Some(name) = anchor
            && self.anchors.insert(name, id).is_some()
        {
            return Err(malformed("an anchor that is there already", position));
        }
        let is_collection = content.kind() != Kind::Scalar;
        self.nodes.push(Node { tag, content, is_shared: false });
        self.values.push(1);
        self.check_values(self.nodes.len())?;
        self.place(id, 1)?;
        if is_collection {
            // The document itself is one level.
            if self.open.len() > self.limits.depth {
                return Err(DecodeError::TooDeep { limit: self.limits.depth });
            }
            self.open.push(Open { id, key: None, values: 1 });
        }
        Ok(())
    }

    /// Whether what comes next is the key of a mapping.
    fn expects_key(&self) -> bool {
        self.open.last().is_some_and(|open| {
            open.key.is_none() && matches!(self.nodes[open.id].content, Content::Mapping(_))
        })
    }

    /// Puts a node into the collection that is open, as so many values.
    fn place(&mut self, id: Id, values: usize) -> Result<(), DecodeError> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        open.values = open.values.saturating_add(values);
        let total = open.values;
        match &mut self.nodes[open.id].content {
            Content::Scalar(_) => {}
            Content::Sequence(items) => items.push(id),
            Content::Mapping(pairs) => match open.key.take() {
                None => open.key = Some(id),
                Some(key) => pairs.push((key, id)),
            },
        }
        self.check_values(total)
    }

    fn check_values(&self, values: usize) -> Result<(), DecodeError> {
        let limit = self.limits.expanded_values;
        if values > limit { Err(DecodeError::TooManyValues { limit }) } else { Ok(()) }
    }
}
