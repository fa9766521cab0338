"""Whether PEM files hold what they should; loaded only by a process that uses TLS."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

__all__ = ["require_authority", "require_match"]


def require_match(certificate: bytes, key: bytes) -> None:
    """Returns when `key` is that of the first certificate of a chain, both PEM.

    Raises:
        ValueError: when it is another's, encrypted or unreadable, or there is no certificate.
    """
    leaf = x509.load_pem_x509_certificates(certificate)[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (TypeError, UnsupportedAlgorithm):
        raise ValueError("the key is encrypted or of an unknown kind") from None
    if _public_bytes(leaf.public_key()) != _public_bytes(private.public_key()):
        raise ValueError("the key is not the certificate's")


def require_authority(authority: bytes) -> None:
    """Returns when there is a PEM certificate.

    Raises:
        ValueError: when there is none.
    """
    x509.load_pem_x509_certificates(authority)


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
