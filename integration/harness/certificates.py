"""Certificate authorities and the certificates that they issue, for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

#: The formats of a private key in its file.
PKCS8 = serialization.PrivateFormat.PKCS8
#: `BEGIN RSA PRIVATE KEY` (PKCS #1) and `BEGIN EC PRIVATE KEY` (SEC 1).
TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL


class Authority:
    """A certificate authority that writes certificates and their keys to a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(
            self._name, self._key, x509.BasicConstraints(ca=True, path_length=None), days=1
        )
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, name: x509.Name, key: object, *extensions: x509.ExtensionType, days: int
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=days))
        )
        for extension in extensions:
            builder = builder.add_extension(
                extension, critical=isinstance(extension, x509.BasicConstraints)
            )
        return builder.sign(self._key, hashes.SHA256())

    def issue(
        self,
        name: str,
        *,
        host: str | None = None,
        days: int = 1,
        kind: str = "rsa",
        form: serialization.PrivateFormat = PKCS8,
        password: bytes | None = None,
        file: str | None = None,
    ) -> tuple[Path, Path]:
        """Issues a certificate for a common name, and returns its file and that of its key.

        `host` is the server's name that clients verify. A certificate with negative `days` has
        expired.
        """
        if kind == "rsa":
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        extensions = [x509.BasicConstraints(ca=False, path_length=None)]
        if host:
            extensions.append(x509.SubjectAlternativeName([x509.DNSName(host)]))
        certificate = self._sign(subject, key, *extensions, days=days)
        file = file or name
        paths = self._folder / f"{file}-certificate.pem", self._folder / f"{file}-key.pem"
        secrecy = (
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption()
        )
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secrecy))
        return paths
