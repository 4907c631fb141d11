"""Makes the signed bodies in this folder with the Celery that runs it, and the certificates.

    for version in 5.7 5.4; do
        integration/.venv/celery-$version/bin/python tests/data/auth/make_envelopes.py
    done

writes `celery-VERSION.json`. Keys and certificates are made where they are missing. They are
worth nothing: they lie here for everybody, and nobody is to trust them.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import celery
from celery.security.certificate import Certificate
from celery.security.key import PrivateKey
from celery.security.serialization import SecureSerializer
from celery.security.utils import get_digest_algorithm
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

HERE = Path(__file__).resolve().parent
BODY = {
    "task_id": "3d8a1a6e-52ad-4a0f-8b3c-0d9a3f4f1c11",
    "status": "SUCCESS",
    "result": [1, "crème", None],
    "traceback": None,
    "children": [],
    "date_done": "2026-11-23T07:51:16.000321+00:00",
    "args": [7],
    "kwargs": {"a": 1.5},
}
START = datetime.datetime(2024, 6, 10, tzinfo=datetime.timezone.utc)


def path(name: str) -> Path:
    return HERE / f"worthless-test-{name}.pem"


def make(
    name: str,
    attributes: list[x509.NameAttribute],
    serial: int,
    key: Any,
    years: int = 100,
    **how: Any,
) -> None:
    """A key, and a certificate that it has signed itself."""
    issuer = x509.Name(attributes)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(START)
        .not_valid_after(START.replace(year=START.year + years))
        .sign(key, hashes.SHA256())
    )
    form = how.get("form", serialization.PrivateFormat.PKCS8)
    encryption = how.get("encryption", serialization.NoEncryption())
    private = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    path(f"{name}-key").write_bytes(private)
    path(f"{name}-certificate").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
    )


def make_certificates() -> None:
    def key(size: int = 2048) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=size)

    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Celeriac")
    common = x509.NameAttribute(NameOID.COMMON_NAME, "for tests only")
    names = [organisation, common]
    make("worker", names, 2**150 + 7, key())
    # The same id, and another key.
    pkcs1 = serialization.PrivateFormat.TraditionalOpenSSL
    make("twin", names, 2**150 + 7, key(), form=pkcs1)
    make("expired", names, 3, key(), years=1)
    make("ec", names, 4, ec.generate_private_key(ec.SECP256R1()))
    make("password", names, 5, key(), encryption=serialization.BestAvailableEncryption(b"x"))
    # A length of which the padding is one byte shorter than the key, and another kind of text.
    wide = x509.NameAttribute(NameOID.COMMON_NAME, "Séléri 芹", _type=_ASN1Type.BMPString)
    make("odd", [organisation, wide], 6, key(2049))


def envelope(signer: str, serializer: str = "json", digest: str = "sha256") -> str:
    key = PrivateKey(path(f"{signer}-key").read_text())
    certificate = Certificate(path(f"{signer}-certificate").read_text())
    return SecureSerializer(key, certificate, None, digest, serializer).serialize(BODY)


def in_itself() -> str:
    """What Celery would make of a body that is signed already."""
    secure = SecureSerializer(
        PrivateKey(path("worker-key").read_text()),
        Certificate(path("worker-certificate").read_text()),
    )
    body = envelope("worker").encode()
    signature = secure._key.sign(body, get_digest_algorithm("sha256"))
    return secure._pack(body, "application/data", "utf-8", secure._cert.get_id(), signature)


def main() -> None:
    if not path("worker-key").exists():
        make_certificates()
    version = celery.__version__
    certificates = ("worker", "expired", "odd")
    made = {
        "ids": {
            name: Certificate(path(f"{name}-certificate").read_text()).get_id()
            for name in certificates
        },
        "json": envelope("worker"),
        "yaml": envelope("worker", "yaml"),
        "msgpack": envelope("worker", "msgpack"),
        "pickle": envelope("worker", "pickle"),
        "sha512": envelope("worker", digest="sha512"),
        "twin": envelope("twin"),
        "odd": envelope("odd"),
        "auth": in_itself(),
    }
    if version < "5.5":
        # Those versions take every body for text.
        made = {name: made[name] for name in made if name not in ("msgpack", "pickle")}
    (HERE / f"celery-{version}.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
