//! What is around a message's content: whether its serializer is accepted, its compression and its
//! signature.

pub(super) mod accept;
pub(super) mod auth;
pub(super) mod compression;
