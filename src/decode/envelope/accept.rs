//! The serializers whose messages are read: Celery's `accept_content`.

use std::collections::BTreeSet;
use std::fmt;

use crate::decode::DecodeError;

/// kombu's content type of JSON.
pub(in crate::decode) const JSON: &str = "application/json";
/// kombu's content type of msgpack.
pub(in crate::decode) const MSGPACK: &str = "application/x-msgpack";
/// kombu's content type of YAML.
pub(in crate::decode) const YAML: &str = "application/x-yaml";
/// kombu's content type of pickle.
pub(in crate::decode) const PICKLE: &str = "application/x-python-serialize";
/// The content type of messages that Celery's `auth` serializer has signed.
pub(in crate::decode) const AUTH: &str = "application/data";

/// The names that Celery gives to serializers, and their content types (`kombu/serialization.py`,
/// 5.7.0, and `celery/security/serialization.py`, 5.7.0).
const SERIALIZERS: [(&str, &str); 5] =
    [("json", JSON), ("msgpack", MSGPACK), ("yaml", YAML), ("pickle", PICKLE), ("auth", AUTH)];

/// The content type as a static string, if it is that of one of Celery's serializers.
pub(in crate::decode) fn serializer(content_type: &[u8]) -> Option<&'static str> {
    SERIALIZERS.iter().map(|(_, known)| *known).find(|known| known.as_bytes() == content_type)
}

/// The number of characters after which a label is cut off in an error message.
const MAX_LABEL_CHARS: usize = 100;

/// The content types that are read.
///
/// The default is every serializer but pickle, as in Celery. Celeriac itself never executes a
/// pickle, but a program that loads a pickled result from a row does.
#[derive(Clone, PartialEq, Eq)]
pub struct Accept(BTreeSet<String>);

impl Default for Accept {
    fn default() -> Self {
        Self([JSON, MSGPACK, YAML, AUTH].map(str::to_owned).into())
    }
}

impl Accept {
    /// Parses a comma-separated list of serializer names and content types.
    ///
    /// # Errors
    ///
    /// Returns the first entry that is neither a known serializer nor a content type.
    pub fn parse(list: &str) -> Result<Self, String> {
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let content_types = names.map(|name| {
            let known = SERIALIZERS.iter().find(|(serializer, _)| *serializer == name);
            match known {
                Some((_, content_type)) => Ok((*content_type).to_owned()),
                // Messages of `celeriac://` may contain columns that an application's own
                // serializer has encoded.
                None if name.contains('/') => Ok(name.to_owned()),
                None => Err(name.to_owned()),
            }
        });
        content_types.collect::<Result<_, _>>().map(Self)
    }

    /// Whether the list is empty, so that no message is accepted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses a content type that is not in the list.
    pub(in crate::decode) fn check(&self, content_type: &str) -> Result<(), DecodeError> {
        if self.0.contains(content_type) {
            return Ok(());
        }
        // A column of `celeriac://` may have a content type that is unknown here; it is accepted if
        // the list names it.
        let is_known = SERIALIZERS.iter().any(|(_, known)| *known == content_type);
        Err(if is_known {
            DecodeError::NotAccepted(content_type.to_owned())
        } else {
            DecodeError::UnsupportedContentType(shown(content_type))
        })
    }
}

/// The part of a label that an error message shows. Labels in bodies and headers can be longer than
/// AMQP's own.
pub(in crate::decode) fn shown(label: &str) -> String {
    label.chars().take(MAX_LABEL_CHARS).collect()
}

/// Shows the content types.
impl fmt::Debug for Accept {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickle_is_accepted_only_when_it_is_named() {
        let default = Accept::default();
        for content_type in [JSON, MSGPACK, YAML, AUTH] {
            assert_eq!(default.check(content_type), Ok(()));
        }
        let refused = DecodeError::NotAccepted(PICKLE.to_owned());
        assert_eq!(default.check(PICKLE), Err(refused));
        assert_eq!(Accept::parse("json, pickle").expect("known").check(PICKLE), Ok(()));
    }

    #[test]
    fn a_list_may_contain_serializers_and_content_types() {
        let accept = Accept::parse(" yaml ,,application/x-shop").expect("known");
        assert_eq!(accept.check(YAML), Ok(()));
        assert_eq!(accept.check("application/x-shop"), Ok(()));
        assert_eq!(accept.check(JSON).expect_err("not named").code(), "not-accepted");
        let unknown = accept.check("application/x-other").expect_err("unknown");
        assert_eq!(unknown.code(), "unsupported-content-type");
        assert_eq!(Accept::parse("json,jason"), Err("jason".to_owned()));
        assert!(Accept::parse(" , ").expect("nothing").is_empty());
    }

    #[test]
    fn a_long_label_is_cut_off_in_the_error() {
        let error = Accept::default().check(&"é".repeat(1_000_000)).expect_err("unknown");
        assert_eq!(error, DecodeError::UnsupportedContentType("é".repeat(MAX_LABEL_CHARS)));
    }
}
