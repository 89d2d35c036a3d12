"""Certificates of the test's own, made when it runs."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

DAY = timedelta(days=1)


class Authority:
    """A CA with the files that it has issued, in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._ca = trustme.CA(organization_unit_name=name)
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(
        self,
        name: str,
        *identities: str,
        before: datetime | None = None,
        after: datetime | None = None,
    ) -> tuple[Path, Path]:
        """Return the files of a certificate and its key, valid from ``before`` to ``after``."""
        pair = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self.replace(pair, *identities, before=before, after=after)
        return pair

    def replace(
        self,
        pair: tuple[Path, Path],
        *identities: str,
        before: datetime | None = None,
        after: datetime | None = None,
    ) -> None:
        """Write a new certificate and its key over old ones."""
        issued = self._ca.issue_cert(
            *(identities or ("localhost", "127.0.0.1")), not_before=before, not_after=after
        )
        pair[0].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(pair[1]))

    def client(self, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Return what a client needs that trusts this authority and shows ``pair``."""
        context = ssl.create_default_context(cafile=str(self.path))
        context.set_alpn_protocols(["http/1.1"])
        if pair:
            context.load_cert_chain(*pair)
        return context


def now() -> datetime:
    return datetime.now(UTC)
