"""docs/AUTH.md is true: its code runs as written, and its figures are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fluxor_fast.auth import apikeys, jwks, revocation
from fluxor_fast.service import attempts, build
from tests.support.pure import Asker, document, run

TEXT = (Path(__file__).parent.parent / "docs" / "AUTH.md").read_text()


def test_the_code_runs_as_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {"__name__": "auth_example"}
    for block in blocks:
        exec(compile(block, "docs/AUTH.md", "exec"), names)

    async def main() -> None:
        tokens = names["tokens"]
        await names["start"]()
        asker = Asker(names["app"])
        answer = await asker.ask("GET", "/me", token=names["token"])
        assert document(answer) == {"id": 1, "roles": ["user"]}
        plain = tokens.issue(1, "ada@example.org", ["user"])
        editor = tokens.issue(2, "b@example.org", ["editor"])
        for path, token, status in (
            ("/reports", names["token"], 200),
            ("/reports", plain, 403),
            ("/reports", editor, 403),
            ("/staff", editor, 200),
            ("/staff", plain, 403),
            ("/export", plain, 200),
            ("/export", None, 401),
            ("/me", None, 401),
        ):
            assert (await asker.ask("GET", path, token=token)).status == status, path
        key = {"X-API-Key": names["text"]}
        assert (await asker.ask("GET", "/export", headers=key)).status == 401
        both = names["both"]
        assert both.verify(both.issue(3, "c@example.org", [])).user_id == 3

    run(main())


def test_figures_are_those_of_the_code() -> None:
    text = " ".join(TEXT.split())
    for words in (
        f"remembered for {apikeys.REMEMBER:.0f} s",
        f"at most every {jwks.PAUSE:.0f} s",
        f"{jwks.LARGEST // 1024} KiB; {jwks.TIMEOUT:.0f} s",
        f"within {attempts.WINDOW // 60} minutes {attempts.ADDRESS} attempts of an address",
        f"{attempts.ACCOUNT_FROM_ADDRESS} of an account from one address and {attempts.ACCOUNT} of",
    ):
        assert words in text, words
    assert (revocation.EVERY, jwks.FRESH) == (1, 600)


def test_the_routes_are_there() -> None:
    there = {(route.method, route.path.replace(":int", "")) for route in build().routes}
    named = re.findall(r"`((?:GET|POST|DELETE)) (/api/auth/\S+)`", TEXT)
    assert len(named) == 6
    assert set(named) <= there
