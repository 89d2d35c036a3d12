"""Certificates from files: what is wrong with them is told, what changes is followed."""

from __future__ import annotations

import logging
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from fluxor_fast.config import TlsSettings
from fluxor_fast.errors import ConfigError
from fluxor_fast.server import tls as tls_module
from fluxor_fast.server.tls import Certificates, Context, validity
from tests.support.certificates import DAY, Authority, now

Pair = tuple[Path, Path]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def settings(pair: Pair, **others: object) -> TlsSettings:
    return TlsSettings.model_validate({"certificate": pair[0], "key": pair[1], **others})


def problems(pair: Pair, **others: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Certificates(settings(pair, **others))
    assert caught.value.exit_code == 2
    return caught.value.problems


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Bring two ends together in memory; return the client's."""
    forth, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, forth, server_hostname="localhost"),
        server.wrap_bio(forth, back, server_side=True),
    ]
    for _ in range(8):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    ends[0].do_handshake()
    return ends[0]


def in_use(certificates: Certificates, authority: Authority) -> bytes | None:
    """Return the certificate that a new connection gets."""
    certificates.context.on_failure = lambda: None
    shown = handshake(certificates.context, authority.client())
    return shown.getpeercert(binary_form=True)


def der(path: Path) -> bytes:
    blocks = path.read_text().split("-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(blocks[0] + "-----END CERTIFICATE-----\n")


# at the start


def test_a_good_pair_is_used_and_nothing_is_said(
    pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(settings(pair))
    assert in_use(certificates, authority) == der(pair[0])
    assert caplog.records == []


def test_key_and_certificate_may_be_one_file(pair: Pair, authority: Authority) -> None:
    both = pair[0].with_name("both.pem")
    both.write_text(pair[1].read_text() + pair[0].read_text())
    certificates = Certificates(TlsSettings(certificate=both))
    assert in_use(certificates, authority) == der(pair[0])


def test_every_fault_is_a_line_with_its_file(pair: Pair, authority: Authority) -> None:
    certificate, key = pair
    other = authority.issue("other")
    nothing = certificate.with_name("nothing.pem")
    text = certificate.with_name("text.pem")
    text.write_text("not PEM\n")
    broken = certificate.with_name("broken.key")
    broken.write_text(key.read_text()[:60] + "\n-----END PRIVATE KEY-----\n")
    holed = certificate.with_name("holed.pem")
    holed.write_text(certificate.read_text().replace("A", "B"))
    asks = {"client_certificate": "required"}

    for given, line in [
        ((nothing, key), f"tls.certificate: {nothing} cannot be read: No such file or directory"),
        ((certificate, nothing), f"tls.key: {nothing} cannot be read: No such file or directory"),
        ((certificate.parent, key), f"tls.certificate: {certificate.parent} cannot be read: Is a"),
        ((text, key), f"tls.certificate: {text} holds no certificate in PEM form"),
        ((key, key), f"tls.certificate: {key} holds no certificate in PEM form"),
        ((holed, key), f"tls.certificate: {holed} "),
        ((certificate, text), f"tls.key: {text} holds no private key in PEM form"),
        ((certificate, certificate), f"tls.key: {certificate} holds no private key in PEM form"),
        ((certificate, broken), f"tls.key: {broken} holds no private key that can be read"),
        ((certificate, other[1]), f"tls.key: {other[1]} is not the key of {certificate}"),
    ]:
        (problem,) = problems(given)
        assert problem.startswith(line), problem
        assert "\n" not in problem
    for ca, line in [
        (nothing, f"tls.client_ca: {nothing} cannot be read: No such file or directory"),
        (text, f"tls.client_ca: {text} holds no certificates in PEM form"),
    ]:
        assert problems(pair, client_ca=ca, **asks) == [line]
    assert len(problems((nothing, nothing), client_ca=nothing, **asks)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(pair: Pair) -> None:
    pair[1].chmod(0)
    assert problems(pair) == [f"tls.key: {pair[1]} cannot be read: Permission denied"]


def test_an_encrypted_key_needs_its_password_and_never_asks_at_the_terminal(
    pair: Pair, authority: Authority
) -> None:
    certificate, key = pair
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    assert problems(pair) == [
        f"tls.key: {key} is encrypted: tls.key_password_file must name a file with its password"
    ]
    password = key.with_name("password")
    password.write_text("wrong\n")
    assert problems(pair, key_password_file=password) == [
        f"tls.key: {key} cannot be decrypted with the password in {password}"
    ]
    password.write_text("x" * 2000)
    (problem,) = problems(pair, key_password_file=password)
    assert str(password) in problem
    assert "xxx" not in problem
    password.write_text("open sesame\n")
    certificates = Certificates(settings(pair, key_password_file=password))
    assert in_use(certificates, authority) == der(certificate)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(-10, -3, "expired on"), (3, 10, "is not valid before")],
)
def test_dates_that_clients_will_not_accept_are_a_warning(
    authority: Authority, caplog: pytest.LogCaptureFixture, before: int, after: int, words: str
) -> None:
    begins, ends = now() + before * DAY, now() + after * DAY
    pair = authority.issue("dated", before=begins, after=ends)
    Certificates(settings(pair))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    day = ends if before < 0 else begins
    assert f"{pair[0]} {words} {day:%Y-%m-%d}" in record.getMessage()


@pytest.mark.parametrize("years", [1, 40])  # UTCTime; GeneralizedTime from 2050 on
def test_the_dates_of_a_certificate_are_read_as_they_stand(
    authority: Authority, years: int
) -> None:
    begins = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)
    ends = begins + timedelta(days=365 * years)
    pair = authority.issue("dated", before=begins, after=ends)
    assert validity(der(pair[0])) == (begins, ends)


def test_what_the_context_allows(pair: Pair, authority: Authority) -> None:
    context = Certificates(settings(pair)).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    for option in (
        ssl.OP_NO_COMPRESSION,
        ssl.OP_NO_RENEGOTIATION,
        ssl.OP_CIPHER_SERVER_PREFERENCE,
    ):
        assert context.options & option
    assert context.verify_mode == ssl.CERT_NONE
    # forward secrecy: TLS 1.3, or a key exchange that is thrown away
    for cipher in context.get_ciphers():
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE"), cipher
        assert cipher["aead"], cipher
    strict = Certificates(
        settings(pair, minimum="1.3", client_ca=authority.path, client_certificate="required")
    ).context
    assert strict.minimum_version == ssl.TLSVersion.TLSv1_3
    assert strict.verify_mode == ssl.CERT_REQUIRED
    assert strict.num_tickets == 0


# later


def test_a_new_pair_is_used_once_it_is_at_rest(pair: Pair, authority: Authority) -> None:
    certificates = Certificates(settings(pair))
    assert not certificates.refresh()
    old, before = certificates.context, der(pair[0])
    authority.replace(pair)
    assert not certificates.refresh()
    assert certificates.context is old
    assert certificates.refresh()
    assert certificates.context is not old
    assert in_use(certificates, authority) == der(pair[0]) != before
    assert not certificates.refresh()


def test_a_worker_that_starts_later_does_not_wait(pair: Pair, authority: Authority) -> None:
    certificates = Certificates(settings(pair))
    assert not certificates.refresh(at_rest=False)
    authority.replace(pair)
    assert certificates.refresh(at_rest=False)
    assert in_use(certificates, authority) == der(pair[0])


def test_a_new_certificate_waits_for_its_key(
    pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(settings(pair))
    before = der(pair[0])
    fresh = authority.issue("fresh")
    pair[0].write_bytes(fresh[0].read_bytes())
    for _ in range(5):
        assert not certificates.refresh()
    assert in_use(certificates, authority) == before
    assert len(caplog.records) == 1  # once for this state of the files
    assert "is not the key of" in caplog.text
    pair[1].write_bytes(fresh[1].read_bytes())
    assert [certificates.refresh() for _ in range(3)] == [False, True, False]
    assert in_use(certificates, authority) == der(fresh[0])


@pytest.mark.parametrize("harm", ["emptied", "removed", "garbled"])
def test_a_broken_pair_keeps_the_old_one_and_is_told_once(
    pair: Pair, authority: Authority, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    certificates = Certificates(settings(pair))
    before = der(pair[0])
    whole = [path.read_bytes() for path in pair]
    if harm == "removed":
        pair[0].unlink()
    else:
        pair[0].write_bytes(b"" if harm == "emptied" else whole[0][::-1])
    for _ in range(5):
        assert not certificates.refresh()
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.ERROR
    assert str(pair[0]) in caplog.text
    assert in_use(certificates, authority) == before
    for path, content in zip(pair, whole, strict=True):
        path.write_bytes(content)
    assert [certificates.refresh() for _ in range(3)] == [False, True, False]


def test_a_link_that_points_elsewhere_is_a_change(tmp_path: Path, authority: Authority) -> None:
    """As Kubernetes and certbot do it: one link is renamed over the other."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for path in authority.issue(name):
            path.rename(tmp_path / name / f"tls{path.suffix}")
    link = tmp_path / "now"
    link.symlink_to("one")
    certificates = Certificates(settings((link / "tls.pem", link / "tls.key")))
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(link)
    assert [certificates.refresh() for _ in range(3)] == [False, True, False]
    assert in_use(certificates, authority) == der(tmp_path / "two" / "tls.pem")


def test_a_new_client_ca_takes_the_place_of_the_old_one(
    pair: Pair, authority: Authority, tmp_path: Path
) -> None:
    """Loading into the same context would only add to what is trusted."""
    theirs = Authority(tmp_path, "theirs")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(authority.path.read_bytes())
    certificates = Certificates(settings(pair, client_ca=trusted, client_certificate="required"))
    trusted.write_bytes(theirs.path.read_bytes())
    assert [certificates.refresh() for _ in range(2)] == [False, True]
    (ca,) = certificates.context.get_ca_certs(binary_form=True)
    assert ca == der(theirs.path)


@pytest.mark.parametrize("harm", ["certificate", "client_ca"])
def test_files_that_vanish_while_they_are_read_keep_the_old_ones(
    pair: Pair,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    harm: str,
) -> None:
    """What was raised then ended the sweep that looked: no timeout ever came again."""
    with_ca = settings(pair, client_ca=authority.path, client_certificate="optional")
    certificates = Certificates(with_ca)
    before = certificates.context
    path = pair[0] if harm == "certificate" else authority.path
    path.write_bytes(path.read_bytes() + b"\n")
    whole = path.read_bytes()

    class Late(Context):
        def load_verify_locations(self, *arguments: Any, **named: Any) -> None:
            path.unlink()
            super().load_verify_locations(*arguments, **named)

    monkeypatch.setattr(tls_module, "Context", Late)
    assert not certificates.refresh(at_rest=False)
    assert "cannot be read: No such file" in caplog.text
    assert certificates.context is before
    monkeypatch.undo()
    path.write_bytes(whole)
    assert [certificates.refresh() for _ in range(2)] == [False, True]


def test_dates_that_cannot_be_read_are_told_and_no_fault(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL serves such a certificate; that we cannot warn must not end anything."""

    def unreadable(der: bytes) -> None:
        raise ValueError("time data does not match")

    monkeypatch.setattr(tls_module, "validity", unreadable)
    assert Certificates(settings(pair)).context
    assert "has dates that are malformed" in caplog.text
