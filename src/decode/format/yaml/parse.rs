//! The grammar of YAML 1.1, as PyYAML has it (`yaml/parser.py`, 6.0.3).

use super::malformed;
use super::resolve::Tag;
use super::scan::{Scalar, Scanner, Token};
use crate::decode::DecodeError;

/// What a document consists of.
pub(super) enum Event<'body> {
    Alias(&'body str),
    Scalar {
        anchor: Option<&'body str>,
        tag: Option<Tag>,
        scalar: Scalar<'body>,
    },
    Sequence {
        anchor: Option<&'body str>,
        tag: Option<Tag>,
    },
    Mapping {
        anchor: Option<&'body str>,
        tag: Option<Tag>,
    },
    /// The end of a sequence or a mapping.
    End,
}

/// What comes next in a collection.
#[derive(Clone, Copy)]
enum State {
    BlockSequenceEntry,
    /// In a sequence that stands no deeper than the key before it.
    IndentlessSequenceEntry,
    BlockMappingKey,
    BlockMappingValue,
    FlowSequenceFirstEntry,
    FlowSequenceEntry,
    /// In a mapping of one pair, which has no braces.
    FlowPairKey,
    FlowPairValue,
    FlowPairEnd,
    FlowMappingFirstKey,
    FlowMappingKey,
    FlowMappingValue,
    FlowMappingNoValue,
}

/// Where a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Flow,
    Block,
    /// In a block mapping, where a sequence need not be indented.
    BlockMapping,
}

/// Reads the events of a document.
pub(super) struct Parser<'body> {
    scanner: Scanner<'body>,
    /// What is to come, the next at the end; empty before the root and behind it.
    states: Vec<State>,
}

impl<'body> Parser<'body> {
    pub(super) fn new(text: &'body str) -> Self {
        Self { scanner: Scanner::new(text), states: Vec::new() }
    }

    /// Where the text is read.
    pub(super) fn position(&self) -> usize {
        self.scanner.position()
    }

    /// Reads what stands before the root.
    pub(super) fn begin(&mut self) -> Result<(), DecodeError> {
        let mut is_declared = false;
        while let Token::Directive = self.scanner.peek()? {
            self.scanner.take()?;
            is_declared = true;
        }
        if let Token::DocumentStart = self.scanner.peek()? {
            self.scanner.take()?;
        } else if is_declared {
            return Err(self.problem("a directive without a document"));
        }
        Ok(())
    }

    /// Reads what stands behind the root, which must be the last.
    pub(super) fn end(&mut self) -> Result<(), DecodeError> {
        while let Token::DocumentEnd = self.scanner.peek()? {
            self.scanner.take()?;
        }
        match self.scanner.peek()? {
            Token::StreamEnd => Ok(()),
            _ => Err(self.problem("something follows the document")),
        }
    }

    /// The next event of the root.
    pub(super) fn next(&mut self) -> Result<Event<'body>, DecodeError> {
        let Some(state) = self.states.pop() else { return self.node(Place::Block) };
        match state {
            State::BlockSequenceEntry => match self.scanner.peek()? {
                Token::BlockEntry => {
                    self.scanner.take()?;
                    self.states.push(state);
                    match self.scanner.peek()? {
                        Token::BlockEntry | Token::BlockEnd => Ok(empty()),
                        _ => self.node(Place::Block),
                    }
                }
                _ => self.block_end(),
            },
            State::IndentlessSequenceEntry => match self.scanner.peek()? {
                Token::BlockEntry => {
                    self.scanner.take()?;
                    self.states.push(state);
                    match self.scanner.peek()? {
                        Token::BlockEntry | Token::Key | Token::Value | Token::BlockEnd => {
                            Ok(empty())
                        }
                        _ => self.node(Place::Block),
                    }
                }
                _ => Ok(Event::End),
            },
            State::BlockMappingKey => match self.scanner.peek()? {
                Token::Key => {
                    self.scanner.take()?;
                    self.states.push(State::BlockMappingValue);
                    self.block_mapping_node()
                }
                // A value whose key is left out.
                _ => self.block_end(),
            },
            State::BlockMappingValue => {
                self.states.push(State::BlockMappingKey);
                match self.scanner.peek()? {
                    Token::Value => {
                        self.scanner.take()?;
                        self.block_mapping_node()
                    }
                    _ => Ok(empty()),
                }
            }
            State::FlowSequenceFirstEntry | State::FlowSequenceEntry => {
                let is_first = matches!(state, State::FlowSequenceFirstEntry);
                self.flow_sequence_entry(is_first)
            }
            State::FlowPairKey => {
                self.scanner.take()?;
                self.states.push(State::FlowPairValue);
                match self.scanner.peek()? {
                    Token::Value | Token::FlowEntry | Token::FlowSequenceEnd => Ok(empty()),
                    _ => self.node(Place::Flow),
                }
            }
            State::FlowPairValue => {
                self.states.push(State::FlowPairEnd);
                match self.scanner.peek()? {
                    Token::Value => {
                        self.scanner.take()?;
                        match self.scanner.peek()? {
                            Token::FlowEntry | Token::FlowSequenceEnd => Ok(empty()),
                            _ => self.node(Place::Flow),
                        }
                    }
                    _ => Ok(empty()),
                }
            }
            State::FlowPairEnd => Ok(Event::End),
            State::FlowMappingFirstKey | State::FlowMappingKey => {
                self.flow_mapping_key(matches!(state, State::FlowMappingFirstKey))
            }
            State::FlowMappingValue => {
                self.states.push(State::FlowMappingKey);
                match self.scanner.peek()? {
                    Token::Value => {
                        self.scanner.take()?;
                        match self.scanner.peek()? {
                            Token::FlowEntry | Token::FlowMappingEnd => Ok(empty()),
                            _ => self.node(Place::Flow),
                        }
                    }
                    _ => Ok(empty()),
                }
            }
            State::FlowMappingNoValue => {
                self.states.push(State::FlowMappingKey);
                Ok(empty())
            }
        }
    }

    /// The key or the value of a pair in a block mapping, which may be left out.
    fn block_mapping_node(&mut self) -> Result<Event<'body>, DecodeError> {
        match self.scanner.peek()? {
            Token::Key | Token::Value | Token::BlockEnd => Ok(empty()),
            _ => self.node(Place::BlockMapping),
        }
    }

    fn block_end(&mut self) -> Result<Event<'body>, DecodeError> {
        match self.scanner.peek()? {
            Token::BlockEnd => {
                self.scanner.take()?;
                Ok(Event::End)
            }
            _ => Err(self.problem("an unexpected token in a block collection")),
        }
    }

    fn flow_sequence_entry(&mut self, is_first: bool) -> Result<Event<'body>, DecodeError> {
        if !is_first {
            self.comma()?;
        }
        match self.scanner.peek()? {
            Token::FlowSequenceEnd => {
                self.scanner.take()?;
                Ok(Event::End)
            }
            Token::Key => {
                self.states.extend([State::FlowSequenceEntry, State::FlowPairKey]);
                Ok(Event::Mapping { anchor: None, tag: None })
            }
            _ => {
                self.states.push(State::FlowSequenceEntry);
                self.node(Place::Flow)
            }
        }
    }

    fn flow_mapping_key(&mut self, is_first: bool) -> Result<Event<'body>, DecodeError> {
        if !is_first {
            self.comma()?;
        }
        match self.scanner.peek()? {
            Token::FlowMappingEnd => {
                self.scanner.take()?;
                Ok(Event::End)
            }
            Token::Key => {
                self.scanner.take()?;
                self.states.push(State::FlowMappingValue);
                match self.scanner.peek()? {
                    Token::Value | Token::FlowEntry | Token::FlowMappingEnd => Ok(empty()),
                    _ => self.node(Place::Flow),
                }
            }
            _ => {
                self.states.push(State::FlowMappingNoValue);
                self.node(Place::Flow)
            }
        }
    }

    /// Takes the comma between two members of a flow collection; there is none before its end.
    fn comma(&mut self) -> Result<(), DecodeError> {
        match self.scanner.peek()? {
            Token::FlowEntry => self.scanner.take().map(drop),
            Token::FlowSequenceEnd | Token::FlowMappingEnd => Ok(()),
            _ => Err(self.problem("a comma is missing")),
        }
    }

    /// The beginning of a node.
    fn node(&mut self, place: Place) -> Result<Event<'body>, DecodeError> {
        let (mut anchor, mut tag) = (None, None);
        loop {
            match self.scanner.peek()? {
                Token::Anchor(_) if anchor.is_none() => {}
                Token::Tag(_) if tag.is_none() => {}
                _ => break,
            }
            match self.scanner.take()? {
                Token::Anchor(name) => anchor = Some(name),
                Token::Tag(name) => tag = Some(name),
                _ => {}
            }
        }
        let has_properties = anchor.is_some() || tag.is_some();
        // `!` says no more than no tag.
        let is_non_specific = tag == Some(None);
        let tag = tag.flatten();
        let (state, event) = match self.scanner.peek()? {
            Token::Alias(_) if !has_properties => {
                let Token::Alias(name) = self.scanner.take()? else { return Ok(empty()) };
                return Ok(Event::Alias(name));
            }
            Token::Scalar(_) => {
                let Token::Scalar(scalar) = self.scanner.take()? else { return Ok(empty()) };
                // PyYAML resolves a scalar with `!` as if it were plain, and does not mind a line
                // break at its end.
                let text = scalar.text.strip_suffix('\n').filter(|text| !text.is_empty());
                let text = text.unwrap_or(&scalar.text);
                let tag = tag.or_else(|| is_non_specific.then(|| Tag::of_plain(text)));
                return Ok(Event::Scalar { anchor, tag, scalar });
            }
            Token::BlockEntry if place == Place::BlockMapping => {
                self.states.push(State::IndentlessSequenceEntry);
                return Ok(Event::Sequence { anchor, tag });
            }
            Token::FlowSequenceStart => {
                (State::FlowSequenceFirstEntry, Event::Sequence { anchor, tag })
            }
            Token::FlowMappingStart => (State::FlowMappingFirstKey, Event::Mapping { anchor, tag }),
            Token::BlockSequenceStart if place != Place::Flow => {
                (State::BlockSequenceEntry, Event::Sequence { anchor, tag })
            }
            Token::BlockMappingStart if place != Place::Flow => {
                (State::BlockMappingKey, Event::Mapping { anchor, tag })
            }
            _ if has_properties => {
                return Ok(Event::Scalar { anchor, tag, scalar: Scalar::EMPTY });
            }
            _ => return Err(self.problem("no value where one is expected")),
        };
        self.scanner.take()?;
        self.states.push(state);
        Ok(event)
    }

    fn problem(&self, problem: &'static str) -> DecodeError {
        malformed(problem, self.position())
    }
}

/// A scalar that is left out.
fn empty<'body>() -> Event<'body> {
    Event::Scalar { anchor: None, tag: None, scalar: Scalar::EMPTY }
}
