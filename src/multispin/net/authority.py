"""A small certificate authority: itself, certificates of servers, certificates of devices.

Keys are on the curve P-256, which every TLS library has. A device's certificate is good for clients
only, so that no device can pass itself off as a server. A server's is good for both: a directory
shows it to its replicas.
"""

from __future__ import annotations

import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from multispin.errors import BadInput
from multispin.net.tls import check_private

CA, SERVER = "ca", "server"
CA_DAYS = 3650
SKEW = timedelta(hours=1)  # clocks that are behind ours see nothing that is not valid yet
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Authority:
    """Of a folder. Files: ca.pem, ca.key, and two for each that it signs for."""

    def __init__(self, folder: Path, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey):
        self._folder = folder
        self._cert = cert
        self._key = key

    @classmethod
    def at(cls, folder: Path) -> Authority:
        """That which is there, or a new one. Raise BadInput if the folder cannot be used."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / f"{CA}.pem").exists():
                return cls._read(folder)
            return cls._new(folder)
        except OSError as error:
            raise BadInput("FOLDER", folder, f"cannot be written: {error.strerror}") from None

    @classmethod
    def _new(cls, folder: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("multispin CA")
        builder = _builder(name, name, key.public_key(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), True)
        cert = builder.sign(key, hashes.SHA256())
        _write(folder, CA, cert, key)
        return cls(folder, cert, key)

    @classmethod
    def _read(cls, folder: Path) -> Authority:
        check_private(folder / f"{CA}.key", "FOLDER")
        try:
            cert = x509.load_pem_x509_certificate((folder / f"{CA}.pem").read_bytes())
            data = (folder / f"{CA}.key").read_bytes()
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError):
            raise BadInput("FOLDER", folder, "ca.pem or ca.key in it is damaged") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
            raise BadInput("FOLDER", folder, "ca.key is not that of ca.pem")
        return cls(folder, cert, key)

    def make_server(self, hosts: list[str], days: float) -> list[Path]:
        """For these names and addresses; the files that were written."""
        names = [_general_name(host) for host in hosts]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._make(SERVER, names, uses, days)

    def make_device(self, name: str, days: float) -> list[Path]:
        if not _DEVICE.fullmatch(name) or name in (CA, SERVER):
            raise BadInput("--device", name, "must be letters, digits, '.', '_', '-', and no file")
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        return self._make(name, names, [ExtendedKeyUsageOID.CLIENT_AUTH], days)

    def _make(
        self,
        name: str,
        names: list[x509.GeneralName],
        uses: list[x509.ObjectIdentifier],
        days: float,
    ) -> list[Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(f"multispin {name}"), self._cert.subject, key.public_key(), days)
        issuer = self._key.public_key()
        for extension, is_critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage(uses), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), False),
        ):
            builder = builder.add_extension(extension, is_critical)
        cert = builder.sign(self._key, hashes.SHA256())
        return _write(self._folder, name, cert, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _usage(**wanted: bool) -> x509.KeyUsage:
    uses = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{use: wanted.get(use, False) for use in uses})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise BadInput("--host", host, "must be a name or an IP address, without a port")
    return x509.DNSName(host)


def _write(
    folder: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> list[Path]:
    """The key before the certificate: what is there always has its key."""
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    paths = [folder / f"{name}.key", folder / f"{name}.pem"]
    for path, text, mode in (
        (paths[0], data, 0o600),
        (paths[1], cert.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        os.replace(temporary, path)
    return paths
