//! The wire formats, one file or folder for each of kombu's serializers.

pub(super) mod json;
pub(super) mod json_text;
pub(super) mod msgpack;
pub(super) mod pickle;
pub(super) mod yaml;
