"""Certificates: from the settings to what a handshake uses, checked at the start, followed later.

Rules:

1. All or nothing. Each change of the files makes a new ``ssl.SSLContext``; it takes the place of
   the one in use only if everything in it is good and fits together. Connections that are open
   keep the context they were made with.
2. Files are looked at about once a second and read when they have been at rest from one look to
   the next, so what is half written is rarely seen. What cannot be used is logged once and the
   old context stays, until the files change again: a new certificate waits for its key.
3. The arbiter makes the first context, before the first fork, and follows the files as workers
   do: one that is replaced while they are broken has the last that were good. At the start all
   workers have the same ticket keys, and a client may resume its session with any of them. From
   the first reload on each worker has its own: a ticket of another worker then costs a full
   handshake, no more. Of clients of TLS 1.2 that take no tickets OpenSSL keeps the last 20,480
   sessions of each worker.
4. TLS 1.2 at least (RFC 8996), no compression, no renegotiation, ALPN ``http/1.1`` (RFC 7301).
   Ciphers with forward secrecy that encrypt and authenticate in one, and no others (RFC 9325,
   section 4.2): what is allowed by default is another matter in each distribution's Python. With
   client certificates no TLS 1.3 tickets are given, so that each handshake looks at one.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fluxor_fast.config import TlsSettings
from fluxor_fast.errors import ConfigError

__all__ = ["Certificates", "Context", "validity"]

log = logging.getLogger("fluxor_fast.tls")

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good."""
_MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_PEM: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)
_NOT_THE_KEY: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")

_Stamp = tuple[int, int, int] | None
"""Modification time in nanoseconds, inode and size of a file; None if there is none."""


class _Object(ssl.SSLObject):
    """One end of one connection, whose failed handshake lets its alert leave before it fails.

    uvloop drops what OpenSSL wants to send when a handshake fails, and the client never learns
    why (RFC 8446, section 6.2). So the failure is told as "more input is wanted", at which uvloop
    sends what there is, and ``failed`` is called. More input then is the end.
    """

    failed: Callable[[], object]
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake.

        :raises ssl.SSLError: if it failed before, or more input is wanted.
        """
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._failure = error
            self.failed()
            raise ssl.SSLWantReadError from None


class Context(ssl.SSLContext):
    """What connections share; ``on_failure`` is for the one that is made next."""

    sslobject_class = _Object
    on_failure: Callable[[], object]

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """Return the end of a new connection."""
        made = super().wrap_bio(*arguments, **named)
        assert isinstance(made, _Object)
        made.failed = self.on_failure
        return made


class Certificates:
    """The certificate, its key and the CA of the clients, as the files have them.

    :raises ConfigError: with a line for each fault of the files: which one, and what is wrong.
    """

    context: Context
    """What new connections are to use."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._seen = self._tried = self._stamps()
        self.context = _build(settings)

    def refresh(self, *, at_rest: bool = True) -> bool:
        """Look at the files and use what is new; return whether that was so.

        :param at_rest: leave what has changed since the last look to the next one.
        """
        stamps = self._stamps()
        if at_rest and stamps != self._seen:
            self._seen = stamps
            return False
        if stamps == self._tried:
            return False
        self._tried = stamps
        try:
            self.context = _build(self._settings)
        except ConfigError as error:
            log.error(
                "the certificates have changed and cannot be used; the old ones stay: %s",
                "; ".join(error.problems),
            )
            return False
        log.info("new connections use the new certificate %s", self._settings.certificate)
        return True

    def _stamps(self) -> list[_Stamp]:
        return [_stamp(path) for _, path in _files(self._settings)]


def _files(settings: TlsSettings) -> Iterator[tuple[str, Path]]:
    for name in ("certificate", "key", "key_password_file", "client_ca"):
        path = getattr(settings, name)
        if path is not None:
            yield f"tls.{name}", path


def _stamp(path: Path) -> _Stamp:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size


def _build(settings: TlsSettings) -> Context:
    texts: dict[str, str] = {}
    problems: list[str] = []
    for name, path in _files(settings):
        try:
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            problems.append(f"{name}: {path} cannot be read: {error.strerror}")
    certificate = _PEM.search(texts.get("tls.certificate", ""))
    if "tls.certificate" in texts and certificate is None:
        problems.append(f"tls.certificate: {settings.certificate} holds no certificate in PEM form")
    if "tls.key" in texts and "PRIVATE KEY-----" not in texts["tls.key"]:
        problems.append(f"tls.key: {settings.key} holds no private key in PEM form")
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM[settings.minimum]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    if "tls.client_ca" in texts:
        context.verify_mode = _VERIFY[settings.client_certificate]
        context.num_tickets = 0
        try:
            context.load_verify_locations(settings.client_ca)
        except ssl.SSLError:
            problems.append(
                f"tls.client_ca: {settings.client_ca} holds no certificates in PEM form"
            )
        except OSError as error:  # it was there a moment ago
            problems.append(f"tls.client_ca: {settings.client_ca} cannot be read: {error.strerror}")
    if certificate is not None and not problems:
        problems += _load_chain(context, settings, texts)
    if problems:
        raise ConfigError(problems)
    assert certificate is not None
    _warn(settings, certificate[0])
    return context


def _load_chain(context: Context, settings: TlsSettings, texts: dict[str, str]) -> list[str]:
    """Load certificate and key; return what is wrong with them."""
    name = "tls.key" if settings.key else "tls.certificate"
    path = settings.key or settings.certificate
    password = texts.get("tls.key_password_file", "").rstrip("\r\n")
    asked = []  # without a callback OpenSSL would ask at the terminal

    def give() -> str:
        asked.append(True)
        return password

    assert settings.certificate is not None
    try:
        context.load_cert_chain(settings.certificate, path, give)
    except ssl.SSLError as error:
        if error.reason in _NOT_THE_KEY:
            return [f"{name}: {path} is not the key of {settings.certificate}"]
        if asked and not settings.key_password_file:
            needed = "tls.key_password_file must name a file with its password"
            return [f"{name}: {path} is encrypted: {needed}"]
        if asked:
            given = f"the password in {settings.key_password_file}"
            return [f"{name}: {path} cannot be decrypted with {given}"]
        if error.reason and not error.reason.startswith("PEM"):
            reason = error.reason.replace("_", " ").lower()
            return [f"tls.certificate: {settings.certificate} cannot be used: {reason}"]
        return [f"{name}: {path} holds no private key that can be read"]
    except OSError as error:  # they were there a moment ago
        return [f"{name}: {settings.certificate} or {path} cannot be read: {error.strerror}"]
    except ValueError as error:  # a password of more than 1,024 bytes
        return [f"tls.key_password_file: {settings.key_password_file}: {error}"]
    return []


def _warn(settings: TlsSettings, pem: str) -> None:
    """Warn of a certificate that clients will not accept for its dates."""
    try:
        begins, ends = validity(ssl.PEM_cert_to_DER_cert(pem))
    except ValueError:  # OpenSSL takes what it cannot read as a date, too
        log.warning("tls.certificate: %s has dates that are malformed", settings.certificate)
        return
    now = datetime.now(UTC)
    if now > ends:
        log.warning("tls.certificate: %s expired on %s", settings.certificate, f"{ends:%Y-%m-%d}")
    elif now < begins:
        log.warning(
            "tls.certificate: %s is not valid before %s", settings.certificate, f"{begins:%Y-%m-%d}"
        )


def validity(der: bytes) -> tuple[datetime, datetime]:
    """Return the first and the last moment of an X.509 certificate that OpenSSL could read.

    RFC 5280, section 4.1: Certificate ::= { tbsCertificate { [0] version, serialNumber,
    signature, issuer, validity { notBefore, notAfter }, … } … }.
    """
    at, _ = _enter(der, 0)  # Certificate
    at, _ = _enter(der, at)  # tbsCertificate
    if der[at] == 0xA0:  # the version is left out of certificates of version 1
        at = _enter(der, at)[1]
    for _ in ("serialNumber", "signature", "issuer"):
        at = _enter(der, at)[1]
    at, _ = _enter(der, at)
    begin, stop = _enter(der, at)
    first = _time(der[at], der[begin:stop])
    begin, end = _enter(der, stop)
    return first, _time(der[stop], der[begin:end])


def _enter(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the value at ``at`` begins and ends (X.690, section 8.1)."""
    size, begin = der[at + 1], at + 2
    if size & 0x80:
        begin += size & 0x7F
        size = int.from_bytes(der[at + 2 : begin], "big")
    return begin, begin + size


def _time(tag: int, text: bytes) -> datetime:
    """UTCTime (two digits of the year: 1950 to 2049) or GeneralizedTime, both in UTC."""
    digits = text.decode("ascii")
    if tag == 0x17:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
