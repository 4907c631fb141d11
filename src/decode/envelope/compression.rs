//! Bodies that were compressed, or encoded as text for a transport without binary bodies.
//!
//! The names are those that kombu writes into the header `compression`, and the aliases that it
//! knows (`kombu/compression.py`, 5.7.0). Decompression stops at the limits, and no decoder may
//! allocate more memory than the output of kombu's own compressors needs.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use liblzma::stream::Stream;

use crate::decode::envelope::accept;
use crate::decode::{DecodeError, WireLimits};

/// A decompressed body of at most this many bytes is allowed at any compression ratio.
const ALWAYS_ALLOWED: usize = 1 << 20;

/// The most memory in bytes that a decoder of xz may allocate: as much as preset 9, the strongest,
/// needs.
const XZ_MEMORY: u64 = 80 << 20;

/// The largest window of zstd, as an exponent of 2: that of level 22, the strongest.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The size of the read buffer in bytes.
const CHUNK_BYTES: usize = 4096;

/// Decodes a body that was encoded as text. `name` is the name of the encoding.
pub(in crate::decode) fn decode_body(name: &str, body: &[u8]) -> Result<Vec<u8>, DecodeError> {
    if !name.eq_ignore_ascii_case("base64") {
        return Err(unsupported("body_encoding", name));
    }
    STANDARD.decode(body.trim_ascii()).map_err(|error| DecodeError::Malformed {
        format: "base64",
        problem: "invalid text",
        position: match error {
            base64::DecodeError::InvalidByte(position, _)
            | base64::DecodeError::InvalidLastSymbol(position, _) => position,
            _ => body.len(),
        },
    })
}

/// Decompresses a body. `name` is the name of the compression method.
pub(in crate::decode) fn decompress(
    name: &str,
    body: &[u8],
    limits: &WireLimits,
) -> Result<Vec<u8>, DecodeError> {
    match name.to_ascii_lowercase().as_str() {
        // What kombu calls `gzip` is the zlib format, not the gzip format.
        "application/x-gzip" | "gzip" | "zlib" => {
            read("zlib", flate2::bufread::ZlibDecoder::new(body), body, limits)
        }
        "application/x-bz2" | "bzip2" | "bzip" => {
            read("bzip2", bzip2::bufread::MultiBzDecoder::new(body), body, limits)
        }
        "application/x-lzma" | "lzma" | "xz" => {
            let decoder = Stream::new_auto_decoder(XZ_MEMORY, 0).map_err(|_| broken("xz", 0))?;
            read("xz", liblzma::bufread::XzDecoder::new_stream(body, decoder), body, limits)
        }
        "application/zstd" | "zstd" | "zstandard" => {
            let decoder = zstd::Decoder::with_buffer(body).and_then(|mut decoder| {
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Ok(decoder)
            });
            read("zstd", decoder.map_err(|_| broken("zstd", 0))?, body, limits)
        }
        "application/x-brotli" | "brotli" => {
            let decoder = brotli_decompressor::Decompressor::new(body, CHUNK_BYTES);
            read("brotli", decoder, body, limits)
        }
        _ => Err(unsupported("compression", name)),
    }
}

/// Reads the decoder to its end, or fails when the limit is exceeded.
fn read(
    format: &'static str,
    decoder: impl Read,
    body: &[u8],
    limits: &WireLimits,
) -> Result<Vec<u8>, DecodeError> {
    let by_ratio = body.len().saturating_mul(limits.compression_ratio).max(ALWAYS_ALLOWED);
    let most = by_ratio.min(limits.decompressed_bytes);
    let mut bytes = Vec::new();
    let one_more = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let read = decoder.take(one_more).read_to_end(&mut bytes);
    if bytes.len() > most {
        return Err(if most == limits.decompressed_bytes {
            DecodeError::DecompressedTooLarge { limit: limits.decompressed_bytes }
        } else {
            DecodeError::TooCompressed { limit: limits.compression_ratio }
        });
    }
    // The decoders do not report the position in the compressed body.
    read.map_err(|_| broken(format, body.len()))?;
    Ok(bytes)
}

fn broken(format: &'static str, position: usize) -> DecodeError {
    DecodeError::Malformed { format, problem: "it is cut off or damaged", position }
}

fn unsupported(header: &'static str, name: &str) -> DecodeError {
    DecodeError::UnsupportedCompression { header, name: Some(accept::shown(name)) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const BODY: &str = r#"{"task_id": "t", "status": "SUCCESS", "result": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#;

    /// [`BODY`] compressed by Python's `brotli.compress`.
    const BROTLI: &[u8] = b"\x1b\x96\x00\x68\x2c\x0e\x78\x73\xa0\x97\xef\x04\x43\x40\x73\xfa\x23\x54\x7a\x8b\x84\xcd\xed\x4d\x10\xb2\xb4\x0a\xa3\x4b\x16\x9d\xbe\x14\xf9\x5a\x03\x87\xdc\x16\x30\x7e\x05\x12\x30\x07\x0a\x95\x40\xd3\x90\x0d\x68\x69\xb8\xed\x4e\x04\x47\x9e\x80\xb9\xab\xde\x51\x03";

    /// Two mebibytes of `a`, compressed in the same way.
    const BROTLI_BOMB: &[u8] = b"\x9b\xff\xff\x1f\xf8\x25\xc2\xe2\xb1\x40\x20\xf7\xfe\x03";

    fn zlib(body: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn bzip2(body: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn xz(body: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd(body: &[u8]) -> Vec<u8> {
        zstd::encode_all(body, 3).expect("memory")
    }

    fn compressed(body: &[u8], brotli: &[u8]) -> [(&'static str, Vec<u8>); 5] {
        [
            ("application/x-gzip", zlib(body)),
            ("application/x-bz2", bzip2(body)),
            ("application/x-lzma", xz(body)),
            ("application/zstd", zstd(body)),
            ("application/x-brotli", brotli.to_vec()),
        ]
    }

    #[test]
    fn every_compression_method_of_kombu_is_supported() {
        let limits = WireLimits::default();
        for (name, body) in compressed(BODY.as_bytes(), BROTLI) {
            assert_eq!(decompress(name, &body, &limits).as_deref(), Ok(BODY.as_bytes()), "{name}");
        }
        for alias in ["gzip", "ZLIB"] {
            assert!(decompress(alias, &zlib(b"x"), &limits).is_ok(), "{alias}");
        }
        let unknown = decompress("application/x-snappy", b"x", &limits).expect_err("unknown");
        assert_eq!(unknown.code(), "unsupported-compression");
    }

    #[test]
    fn a_compressed_body_cut_or_changed_anywhere_is_refused_or_read_and_never_panics() {
        let limits = WireLimits::default();
        for (name, body) in compressed(BODY.as_bytes(), BROTLI) {
            for length in 0..body.len() {
                // The missing bytes may be only a checksum; then the body is complete.
                let cut = decompress(name, &body[..length], &limits);
                assert!(cut.is_err() || cut.as_deref() == Ok(BODY.as_bytes()), "{name}: {length}");
            }
            for position in 0..body.len() {
                for bit in 0..8 {
                    let mut changed = body.clone();
                    changed[position] ^= 1 << bit;
                    let _ = decompress(name, &changed, &limits);
                }
            }
        }
    }

    #[test]
    fn a_decompression_bomb_is_refused_at_the_limits() {
        let bomb = vec![b'a'; 2 << 20];
        let by_ratio = WireLimits { compression_ratio: 10, ..WireLimits::default() };
        let by_size = WireLimits {
            decompressed_bytes: (1 << 20) + 1,
            compression_ratio: 1_000_000,
            ..WireLimits::default()
        };
        let enough = WireLimits { compression_ratio: 1_000_000, ..WireLimits::default() };
        for (name, body) in compressed(&bomb, BROTLI_BOMB) {
            let error = decompress(name, &body, &by_ratio).expect_err(name);
            assert_eq!(error, DecodeError::TooCompressed { limit: 10 }, "{name}");
            let error = decompress(name, &body, &by_size).expect_err(name);
            assert_eq!(error, DecodeError::DecompressedTooLarge { limit: (1 << 20) + 1 });
            assert_eq!(decompress(name, &body, &enough).as_ref(), Ok(&bomb), "{name}");
        }
    }

    #[test]
    fn a_header_that_asks_for_too_much_memory_is_refused() {
        // The header of a stream in the old `lzma` format whose dictionary has 4 GiB minus one
        // byte.
        let lzma = b"\x5d\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00";
        // The header of a zstd frame whose window has 2 TiB.
        let zstd = b"\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00";
        for (name, body) in [("lzma", &lzma[..]), ("zstd", &zstd[..])] {
            let error = decompress(name, body, &WireLimits::default()).expect_err(name);
            assert_eq!(error.code(), "undecodable", "{name}");
        }
    }

    #[test]
    fn a_body_in_base64_is_decoded() {
        assert_eq!(decode_body("base64", b"aGVsbG8=\n").as_deref(), Ok(&b"hello"[..]));
        let error = decode_body("base64", b"aGVs*G8=").expect_err("damaged");
        assert_eq!(error.to_string(), "the body is not base64: invalid text at byte 4");
        assert_eq!(
            decode_body("hex", b"00").expect_err("unknown").code(),
            "unsupported-compression"
        );
    }
}
