"""Mutual TLS from files, rotated without a restart; plaintext only on loopback."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from servicekit.settings import SettingsError, setting

__all__ = ["TlsSettings", "host_of", "is_loopback"]

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
        watcher = _CertificateWatcher(self)
        return grpc.dynamic_ssl_server_credentials(
            watcher.current(),
            # None, "nothing new", is allowed; the stubs do not know.
            watcher.fetch,  # type: ignore[arg-type]  # see above
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Returns credentials that show this service's certificate.

        Raises:
            SettingsError: when a file is missing.
        """
        problems = self.problems()
        if problems:
            raise SettingsError(problems)
        certificate, key, authority = self._read()
        return grpc.ssl_channel_credentials(authority, key, certificate)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        if self.certificate_file is None or self.key_file is None or self.authority_file is None:
            raise SettingsError(self.problems())
        return (
            self.certificate_file.read_bytes(),
            self.key_file.read_bytes(),
            self.authority_file.read_bytes(),
        )


class _CertificateWatcher:
    """Gives gRPC a new configuration at the first handshake after the files changed.

    gRPC asks before every handshake; comparing modification times keeps that cheap.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._stamp = self._modified()

    def current(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, authority = self._settings._read()  # noqa: SLF001  # same module
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            stamp = self._modified()
            if stamp == self._stamp:
                return None
            configuration = self.current()
        except OSError:
            # The files are being replaced; the old certificate serves until the next handshake.
            log.warning("certificate_unreadable", certificate=str(self._settings.certificate_file))
            return None
        self._stamp = stamp
        log.info("certificate_rotated", certificate=str(self._settings.certificate_file))
        return configuration

    def _modified(self) -> tuple[int, ...]:
        files = (
            self._settings.certificate_file,
            self._settings.key_file,
            self._settings.authority_file,
        )
        return tuple(path.stat().st_mtime_ns for path in files if path is not None)


def host_of(address: str) -> str:
    """Returns the host in `host:port` or `[host]:port`."""
    host, _, _ = address.rpartition(":")
    return host.strip("[]")


def is_loopback(address: str) -> bool:
    """Whether `host:port` names this machine alone."""
    if address.startswith("unix:"):
        return True
    host = host_of(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
