"""Makes an authority and certificates for development and tests; production brings its own.

python -m servicekit.development_certificates --directory certs suite-service/ai-router operator/me
"""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from servicekit.caller import IDENTITY_PREFIX, parse_identity

__all__ = ["CertificateFiles", "DevelopmentAuthority"]

_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate, its key and its authority were written."""

    certificate: Path
    key: Path
    authority: Path


class DevelopmentAuthority:
    """A certificate authority whose key lives in memory only."""

    def __init__(self, *, now: datetime, valid_days: int = 30) -> None:
        self._now = now
        self._valid = timedelta(days=valid_days)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gamekeeper development")])
        self._certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificate_sign=True), critical=True)
            .add_extension(self._key_identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def issue(
        self,
        identity: str,
        directory: Path,
        *,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        expired: bool = False,
    ) -> CertificateFiles:
        """Writes a certificate for `identity` (`role/name`) into `directory`; the key is 0600.

        Raises:
            ValueError: when the role is none of the suite's.
        """
        uri = IDENTITY_PREFIX + identity
        if parse_identity(uri) is None:
            raise ValueError(f"{identity!r} is not <role>/<name> with a role of the suite")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity[-64:])])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        certificate = (
            self._builder(subject, key.public_key(), expired=expired)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(certificate_sign=False), critical=True)
            .add_extension(
                # Strict verification, the default of Python 3.13's ssl module, demands it.
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self._key_identifier
                ),
                critical=False,
            )
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        directory.mkdir(parents=True, exist_ok=True)
        stem = identity.replace("/", "-")
        files = CertificateFiles(
            certificate=directory / f"{stem}.pem",
            key=directory / f"{stem}.key",
            authority=directory / "authority.pem",
        )
        _write(files.key, _private_bytes(key), mode=0o600)
        _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        _write(files.authority, self._certificate.public_bytes(serialization.Encoding.PEM))
        return files

    def _builder(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, expired: bool = False
    ) -> x509.CertificateBuilder:
        end = self._now - timedelta(hours=1) if expired else self._now + self._valid
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(self._now, end) - _CLOCK_SKEW)
            .not_valid_after(end)
        )


def _key_usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_sign,
        crl_sign=certificate_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    # Replaced by rename, so that a server reading it never sees half a file.
    scratch = path.with_name(path.name + ".new")
    scratch.touch(mode=mode)
    scratch.write_bytes(content)
    scratch.replace(path)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description="Make a development authority and certificates signed by it."
    )
    parser.add_argument("--directory", type=Path, required=True, help="where to write them")
    parser.add_argument("--valid-days", type=int, default=30, help="how long they are valid")
    parser.add_argument(
        "--host", action="append", default=[], help="further host name or address of the servers"
    )
    parser.add_argument("identity", nargs="+", help="<role>/<name>, for example operator/me")
    arguments = parser.parse_args()
    authority = DevelopmentAuthority(now=datetime.now(UTC), valid_days=arguments.valid_days)
    for identity in arguments.identity:
        try:
            files = authority.issue(
                identity,
                arguments.directory,
                hosts=("localhost", "127.0.0.1", *arguments.host),
            )
        except ValueError as error:
            parser.error(str(error))
        print(files.certificate)


if __name__ == "__main__":
    main()
