"""Makes an authority and certificates for development and tests; production brings its own.

`gamekeeper certs dev DIRECTORY` makes what a whole suite needs. Where that is not installed, as in
a service's image, this module makes the identities it is given:

python -m servicekit.development_certificates --directory certs suite-service/ai-router operator/me
"""

from __future__ import annotations

import argparse
import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from servicekit.caller import IDENTITY_PREFIX, parse_identity
from servicekit.method_policies import Role

__all__ = [
    "AuthorityUnusable",
    "CertificateFiles",
    "DevelopmentAuthority",
    "EnsuredCertificate",
    "Outcome",
]

LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
_CLOCK_SKEW = timedelta(minutes=5)
_AUTHORITY_DAYS = 365
_RENEWED_BELOW = 1 / 3
"""The share of a certificate's time that is left when it is renewed."""


class AuthorityUnusable(Exception):
    """The files of an authority are there but cannot be used; the message says which and why."""


class Outcome(StrEnum):
    """What became of a certificate that was to be there."""

    KEPT = "kept"
    MADE = "made"
    RENEWED = "renewed"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate, its key and its authority were written."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class EnsuredCertificate:
    """A certificate that is there now, what was done for that, and when it ends."""

    identity: str
    files: CertificateFiles
    outcome: Outcome
    valid_until: datetime


class DevelopmentAuthority:
    """A certificate authority; without a `key` it makes one that lives in memory only.

    Args:
        now: the time from which its certificates are valid.
        valid_days: for how long; the authority itself is valid for a year or longer.
        key: the authority's private key. Certificates of an earlier authority with the same key
            stay good under this one.
    """

    def __init__(
        self,
        *,
        now: datetime,
        valid_days: int = 30,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self._now = now
        self._valid = timedelta(days=valid_days)
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        self._key_identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gamekeeper development")])
        self._certificate = (
            self._builder(self._name, self._key.public_key(), days=max(_AUTHORITY_DAYS, valid_days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(certificate_sign=True), critical=True)
            .add_extension(self._key_identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @classmethod
    def of_directory(
        cls, directory: Path, *, now: datetime, valid_days: int = 30
    ) -> DevelopmentAuthority:
        """Returns the authority whose key is in `directory`; makes the key the first time.

        Raises:
            AuthorityUnusable: there is a key that cannot be read.
        """
        file = directory / "authority.key"
        key = None
        if file.exists():
            try:
                loaded = serialization.load_pem_private_key(file.read_bytes(), password=None)
            except (OSError, ValueError, TypeError):
                loaded = None
            if not isinstance(loaded, ec.EllipticCurvePrivateKey):
                raise AuthorityUnusable(
                    f"{file} is no key of a development authority, or it may not be read; remove "
                    "the directory's contents to begin anew"
                )
            key = loaded
        authority = cls(now=now, valid_days=valid_days, key=key)
        if key is None:
            _make_directory(directory)
            _write(file, _private_bytes(authority._key))
        else:
            authority._keep(directory / "authority.pem")
        return authority

    def ensure(
        self, identity: str, directory: Path, *, hosts: tuple[str, ...] = LOOPBACK_HOSTS
    ) -> EnsuredCertificate:
        """Makes a certificate for `identity` unless a good one is in `directory`.

        One is good when this authority signed it, the key beside it is its own, it names the same
        hosts, and more than a third of its time is left.

        Raises:
            ValueError: when the role is none of the suite's.
        """
        files = _files(identity, directory)
        present = files.certificate.exists()
        if present:
            until = self._good_until(identity, files, hosts)
            if until is not None:
                self._write_authority(files)
                return EnsuredCertificate(identity, files, Outcome.KEPT, until)
        self.issue(identity, directory, hosts=hosts)
        outcome = Outcome.RENEWED if present else Outcome.MADE
        return EnsuredCertificate(
            identity, files, outcome, (self._now + self._valid).replace(microsecond=0)
        )

    def issue(
        self,
        identity: str,
        directory: Path,
        *,
        hosts: tuple[str, ...] = LOOPBACK_HOSTS,
        expired: bool = False,
    ) -> CertificateFiles:
        """Writes a certificate for `identity` (`role/name`) into `directory`; files are 0600.

        Only a suite service's names `hosts` and may serve: nobody else's passes for a service.

        Raises:
            ValueError: when the role is none of the suite's.
        """
        names = _names(identity, hosts)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity[-64:])])
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
            .add_extension(x509.ExtendedKeyUsage(_usages(identity)), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        _make_directory(directory)
        files = _files(identity, directory)
        _write(files.key, _private_bytes(key))
        _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
        self._write_authority(files)
        return files

    def _write_authority(self, files: CertificateFiles) -> None:
        content = self._certificate.public_bytes(serialization.Encoding.PEM)
        # Not touched without need: whoever follows the file would take it over.
        if not files.authority.exists() or files.authority.read_bytes() != content:
            _write(files.authority, content)

    def _keep(self, file: Path) -> None:
        """Goes on with the certificate in `file` when it is of the key and has time left."""
        try:
            present = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError):
            return
        if present.public_key() == self._key.public_key() and self._has_time(present):
            self._certificate = present

    def _has_time(self, certificate: x509.Certificate) -> bool:
        until = certificate.not_valid_after_utc
        lifetime = until - certificate.not_valid_before_utc
        return until - self._now > lifetime * _RENEWED_BELOW

    def _good_until(
        self, identity: str, files: CertificateFiles, hosts: tuple[str, ...]
    ) -> datetime | None:
        try:
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
            certificate.verify_directly_issued_by(self._certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return None
        good = (
            key.public_key() == certificate.public_key()
            and list(names.value) == _names(identity, hosts)
            and self._has_time(certificate)
        )
        return certificate.not_valid_after_utc if good else None

    def _builder(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        *,
        expired: bool = False,
        days: int | None = None,
    ) -> x509.CertificateBuilder:
        valid = self._valid if days is None else timedelta(days=days)
        end = self._now - timedelta(hours=1) if expired else self._now + valid
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


def _names(identity: str, hosts: tuple[str, ...]) -> list[x509.GeneralName]:
    uri = IDENTITY_PREFIX + identity
    if parse_identity(uri) is None:
        raise ValueError(f"{identity!r} is not <role>/<name> with a role of the suite")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    for host in dict.fromkeys(hosts if _serves(identity) else ()):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _serves(identity: str) -> bool:
    return identity.startswith(f"{Role.SUITE_SERVICE.value}/")


def _usages(identity: str) -> list[x509.ObjectIdentifier]:
    server = [ExtendedKeyUsageOID.SERVER_AUTH] if _serves(identity) else []
    return [*server, ExtendedKeyUsageOID.CLIENT_AUTH]


def _files(identity: str, directory: Path) -> CertificateFiles:
    stem = identity.replace("/", "-")
    return CertificateFiles(
        certificate=directory / f"{stem}.pem",
        key=directory / f"{stem}.key",
        authority=directory / "authority.pem",
    )


def _make_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    # Replaced by rename, so that a server reading it never sees half a file.
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    scratch.replace(path)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description="Make a development authority and certificates signed by it; keep good ones."
    )
    parser.add_argument("--directory", type=Path, required=True, help="where to write them")
    parser.add_argument("--valid-days", type=int, default=30, help="how long they are valid")
    parser.add_argument(
        "--host", action="append", default=[], help="further host name or address of the servers"
    )
    parser.add_argument("identity", nargs="+", help="<role>/<name>, for example operator/me")
    arguments = parser.parse_args()
    try:
        authority = DevelopmentAuthority.of_directory(
            arguments.directory, now=datetime.now(UTC), valid_days=arguments.valid_days
        )
        for identity in arguments.identity:
            hosts = (*LOOPBACK_HOSTS, *arguments.host)
            print(authority.ensure(identity, arguments.directory, hosts=hosts).files.certificate)
    except (ValueError, AuthorityUnusable) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
