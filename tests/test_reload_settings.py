"""Which settings a reload keeps as they were."""

from __future__ import annotations

from pathlib import Path

from fluxor_fast.arbiter.reload import FIXED, fixed, keep_fixed
from fluxor_fast.config import Settings, knobs


def settings(**sections: dict[str, object]) -> Settings:
    return Settings.model_validate(sections)


def test_what_can_change_changes_and_what_cannot_is_named() -> None:
    before = settings(server={"port": 8000, "uds": "/run/a", "max_ccu": 100})
    after = settings(server={"port": 9000, "uds": "/run/b", "max_ccu": 200, "listener": "shared"})
    kept, names = keep_fixed(fixed(before), after)
    assert names == ["server.port", "server.uds", "server.listener"]
    assert (kept.server.port, kept.server.uds) == (8000, Path("/run/a"))
    assert kept.server.listener == "reuseport"
    assert kept.server.max_ccu == 200


def test_nothing_is_named_when_nothing_that_is_fixed_changes() -> None:
    kept, names = keep_fixed(fixed(settings()), settings(server={"max_ccu": 1}))
    assert names == []
    assert kept.server.max_ccu == 1


def test_tls_changes_but_neither_begins_nor_ends() -> None:
    one, two = ({"certificate": f"/etc/{name}.pem"} for name in "ab")
    assert keep_fixed(fixed(settings(tls=one)), settings(tls=two))[1] == []
    assert keep_fixed(fixed(settings(tls=one)), settings())[1] == ["tls.certificate"]
    assert keep_fixed(fixed(settings()), settings(tls=one))[1] == ["tls.certificate"]


def test_the_names_are_those_of_settings_and_no_secret_is_among_them() -> None:
    known = {knob.path: knob for knob in knobs()}
    assert set(FIXED) <= set(known)
    assert not any(known[path].is_secret for path in FIXED)
