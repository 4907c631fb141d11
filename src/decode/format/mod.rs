//! The serializers of kombu, one file or folder each.

pub(super) mod json;
pub(super) mod json_text;
pub(super) mod msgpack;
pub(super) mod pickle;
pub(super) mod yaml;
