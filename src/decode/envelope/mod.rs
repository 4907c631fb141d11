//! The envelope of a message's content: the accepted serializers, compression and signatures.

pub(super) mod accept;
pub(super) mod auth;
pub(super) mod compression;
