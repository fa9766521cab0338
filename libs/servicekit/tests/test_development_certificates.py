"""A development authority in a directory: made once, kept, its certificates renewed in time."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from servicekit.development_certificates import (
    AuthorityUnusable,
    DevelopmentAuthority,
    EnsuredCertificate,
    Outcome,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = "suite-service/autoscaler"


def ensure(
    directory: Path,
    *,
    days_later: float = 0,
    identity: str = IDENTITY,
    hosts: tuple[str, ...] = ("localhost",),
) -> EnsuredCertificate:
    now = START + timedelta(days=days_later)
    authority = DevelopmentAuthority.of_directory(directory, now=now, valid_days=30)
    return authority.ensure(identity, directory, hosts=hosts)


def certificate_in(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_second_run_changes_no_file(tmp_path: Path) -> None:
    assert ensure(tmp_path).outcome is Outcome.MADE
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    assert ensure(tmp_path, days_later=19).outcome is Outcome.KEPT
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    assert after == before


def test_a_certificate_near_its_end_is_renewed_by_the_same_authority(tmp_path: Path) -> None:
    first = ensure(tmp_path)
    authority = first.files.authority.read_bytes()
    old = certificate_in(first.files.certificate)
    renewed = ensure(tmp_path, days_later=21)
    assert renewed.outcome is Outcome.RENEWED
    new = certificate_in(renewed.files.certificate)
    assert new.not_valid_after_utc == renewed.valid_until == START + timedelta(days=51)
    assert new.serial_number != old.serial_number
    assert renewed.files.authority.read_bytes() == authority
    new.verify_directly_issued_by(certificate_in(renewed.files.authority))


def test_an_authority_near_its_end_is_renewed_so_that_old_certificates_stay_good(
    tmp_path: Path,
) -> None:
    now = START + timedelta(days=250)  # of a year
    first = ensure(tmp_path)
    ensure(tmp_path, days_later=240, identity="operator/me")
    before = certificate_in(first.files.authority)
    kept = DevelopmentAuthority.of_directory(tmp_path, now=now).ensure(
        "operator/me", tmp_path, hosts=("localhost",)
    )
    after = certificate_in(first.files.authority)
    assert after.not_valid_after_utc > before.not_valid_after_utc
    assert kept.outcome is Outcome.KEPT
    certificate_in(kept.files.certificate).verify_directly_issued_by(after)


def test_a_certificate_with_other_hosts_is_made_anew(tmp_path: Path) -> None:
    ensure(tmp_path)
    again = ensure(tmp_path, hosts=("localhost", "gpu-7.lan"))
    assert again.outcome is Outcome.RENEWED
    names = certificate_in(again.files.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "gpu-7.lan"]


@pytest.mark.parametrize("damage", ["key of another", "no key", "not a certificate", "foreign"])
def test_a_damaged_certificate_is_made_anew(tmp_path: Path, damage: str) -> None:
    files = ensure(tmp_path).files
    other = DevelopmentAuthority(now=START).issue(IDENTITY, tmp_path / "other")
    match damage:
        case "key of another":
            files.key.write_bytes(other.key.read_bytes())
        case "no key":
            files.key.unlink()
        case "not a certificate":
            files.certificate.write_text("hello")
        case "foreign":
            files.key.write_bytes(other.key.read_bytes())
            files.certificate.write_bytes(other.certificate.read_bytes())
    assert ensure(tmp_path).outcome is Outcome.RENEWED
    assert ensure(tmp_path).outcome is Outcome.KEPT


def test_all_files_are_their_owners_alone(tmp_path: Path) -> None:
    directory = tmp_path / "certificates"
    ensure(directory)
    ensure(directory, days_later=25)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_an_authority_whose_key_is_damaged_is_not_replaced(tmp_path: Path) -> None:
    ensure(tmp_path)
    (tmp_path / "authority.key").write_text("hello")
    with pytest.raises(AuthorityUnusable, match=r"authority\.key is no key"):
        ensure(tmp_path)
    assert (tmp_path / "authority.key").read_text() == "hello"


def test_an_identity_outside_the_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="emperor"):
        ensure(tmp_path, identity="emperor/me")
