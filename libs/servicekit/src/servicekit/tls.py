"""Mutual TLS from files, rotated without a restart; plaintext only on loopback."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from servicekit.settings import SettingsError, setting

__all__ = ["Certificates", "TlsSettings", "host_of", "is_loopback"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The service's certificate, its key and the authority that signs all peers'.

    All three or none: with none the service speaks plaintext, which only loopback allows.
    """

    certificate_file: Path | None = setting(
        "GAMEKEEPER_TLS_CERTIFICATE_FILE",
        default=None,
        help="PEM certificate chain of this service; its URI SAN is the identity",
    )
    key_file: Path | None = setting(
        "GAMEKEEPER_TLS_KEY_FILE", default=None, help="PEM private key of the certificate"
    )
    authority_file: Path | None = setting(
        "GAMEKEEPER_TLS_CA_FILE",
        default=None,
        help="PEM certificates of the authority of all peers",
    )

    @property
    def enabled(self) -> bool:
        """Whether any of the files is set."""
        return any((self.certificate_file, self.key_file, self.authority_file))

    def problems(self) -> list[str]:
        """Returns a line for everything wrong with the files."""
        if not self.enabled:
            return []
        found = []
        for variable, path in (
            ("GAMEKEEPER_TLS_CERTIFICATE_FILE", self.certificate_file),
            ("GAMEKEEPER_TLS_KEY_FILE", self.key_file),
            ("GAMEKEEPER_TLS_CA_FILE", self.authority_file),
        ):
            if path is None:
                found.append(f"{variable} is required when another GAMEKEEPER_TLS_* file is set")
            elif not path.is_file():
                found.append(f"{variable}='{path}' is wrong: there is no such file")
        return found

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials that demand a client certificate and follow the files' changes.

        Raises:
            SettingsError: when a file is missing.
        """
        problems = self.problems()
        if problems:
            raise SettingsError(problems)
        certificates = Certificates(self)
        return grpc.dynamic_ssl_server_credentials(
            certificates.server_configuration(),
            # None, "nothing new", is allowed; the stubs do not know.
            certificates.new_server_configuration,  # type: ignore[arg-type]  # see above
            require_client_authentication=True,
        )

    def follow(self) -> Certificates:
        """Returns the certificates, followed through changes of their files.

        Raises:
            SettingsError: when a file is missing, or they do not fit together.
        """
        problems = self.problems()
        if problems:
            raise SettingsError(problems)
        return Certificates(self)

    def paths(self) -> tuple[Path, Path, Path]:
        """Returns the files of certificate, key and authority.

        Raises:
            SettingsError: when one is not set.
        """
        if self.certificate_file is None or self.key_file is None or self.authority_file is None:
            raise SettingsError(self.problems())
        return self.certificate_file, self.key_file, self.authority_file


class Certificates:
    """Certificate, key and authority as they were last read whole.

    The three files cannot be replaced in one step, so a set is taken over only when the key belongs
    to the certificate; until then the former one serves. Comparing modification times keeps looking
    cheap.

    Raises:
        SettingsError: when the files cannot be read or do not fit together at the start.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._paths = settings.paths()
        self._rejected: tuple[int, ...] = ()
        try:
            self._stamp = self._modified()
            self._content = self._read()
        except (OSError, ValueError):
            raise SettingsError(
                [
                    (
                        f"GAMEKEEPER_TLS_CERTIFICATE_FILE='{self._paths[0]}' cannot be used: it "
                        "must be a PEM certificate of the key in GAMEKEEPER_TLS_KEY_FILE, and both "
                        "must be readable"
                    )
                ]
            ) from None

    def version(self) -> tuple[int, ...]:
        """Returns a value that changes when a new set was taken over, after looking for one."""
        self._look()
        return self._stamp

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Returns credentials that show the certificate."""
        certificate, key, authority = self._content
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """Returns the configuration for handshakes from now on."""
        certificate, key, authority = self._content
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def new_server_configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the configuration when the files changed, else None; asked at each handshake."""
        return self.server_configuration() if self._look() else None

    def _look(self) -> bool:
        try:
            stamp = self._modified()
            if stamp in (self._stamp, self._rejected):
                return False
            content = self._read()
        except OSError:
            return False  # a file is being replaced; the next look finds it
        except ValueError:
            self._rejected = stamp
            log.warning("certificate_not_taken_over", certificate=str(self._paths[0]))
            return False
        self._stamp, self._content = stamp, content
        log.info("certificate_rotated", certificate=str(self._paths[0]))
        return True

    def _modified(self) -> tuple[int, ...]:
        states = [path.stat() for path in self._paths]
        # A file of the same age can still be another one.
        return tuple(number for state in states for number in (state.st_mtime_ns, state.st_ino))

    def _read(self) -> tuple[bytes, bytes, bytes]:
        # Loading the library takes a tenth of a service's start, which plaintext has no use for.
        from servicekit.certificate_checks import (  # noqa: PLC0415  # see above
            require_authority,
            require_match,
        )

        certificate, key, authority = (path.read_bytes() for path in self._paths)
        require_match(certificate, key)
        require_authority(authority)
        return certificate, key, authority


def host_of(address: str) -> str:
    """Returns the host in `host:port` or `[host]:port`."""
    host, _, _ = address.rpartition(":")
    return host.strip("[]")


def is_loopback(address: str) -> bool:
    """Whether `host:port` (or a gRPC name of one or several) is reached on this machine alone."""
    for scheme in ("ipv4:", "ipv6:"):
        if address.startswith(scheme):
            return all(map(is_loopback, address.removeprefix(scheme).split(",")))
    address = address.removeprefix("dns:///")
    if address.startswith("unix:"):
        return True
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
