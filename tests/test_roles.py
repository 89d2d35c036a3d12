"""Authentication and roles as middleware, on every kind of route."""

from __future__ import annotations

from typing import Any

import pytest

from fluxor_fast import App, Request
from fluxor_fast.auth.roles import authenticated, require_any, require_role
from fluxor_fast.auth.tokens import Tokens
from tests.support.pure import Asker, document, run

TOKENS = Tokens(b"s" * 32, 3600)  # made at import: must outlast a slow suite
USER = TOKENS.issue(1, "user@example.com", ["user"])
ADMIN = TOKENS.issue(2, "admin@example.com", ["user", "admin"])


def answer(request: Request) -> dict[str, Any]:
    return {"user": request.state["user"].user_id}


async def answer_async(request: Request) -> dict[str, Any]:
    return answer(request)


def application() -> Asker:
    app = App()
    signed_in = authenticated(lambda request: TOKENS)
    admin = (signed_in, require_any("admin", "owner"))
    for kind, handler in (("sync", answer), ("blocking", answer), ("async", answer_async)):
        options: dict[str, Any] = {"blocking": kind == "blocking"}
        app.get(f"/{kind}/user", middleware=(signed_in,), **options)(handler)
        app.get(f"/{kind}/admin", middleware=admin, **options)(handler)
    app.get("/unguarded", middleware=(require_role("admin"),))(answer)
    return Asker(app)


@pytest.mark.parametrize("kind", ["sync", "blocking", "async"])
def test_who_gets_in(kind: str) -> None:
    async def main() -> None:
        asker = application()
        assert document(await asker.ask("GET", f"/{kind}/user", token=USER)) == {"user": 1}
        assert document(await asker.ask("GET", f"/{kind}/admin", token=ADMIN)) == {"user": 2}
        refused = await asker.ask("GET", f"/{kind}/admin", token=USER)
        assert (refused.status, document(refused)["code"]) == (403, "FORBIDDEN")
        for path in ("user", "admin"):
            refused = await asker.ask("GET", f"/{kind}/{path}")
            assert (refused.status, document(refused)["code"]) == (401, "UNAUTHORIZED")
            assert refused.headers["WWW-Authenticate"] == "Bearer"

    run(main())


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (f"Bearer {USER}", 200),
        (f"bearer {USER}", 200),
        (f"BEARER  {USER} ", 200),
        (f"Basic {USER}", 401),
        (USER, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("", 401),
        (f"Bearer {USER}, Bearer {USER}", 401),
        (f"Bearer {USER} x", 401),
        (f"Bearer\t{USER}", 401),
        ("Bearer \xff", 401),
    ],
)
def test_forms_of_the_header(value: str, status: int) -> None:
    async def main() -> None:
        answer = await application().ask("GET", "/sync/user", headers={"Authorization": value})
        assert answer.status == status

    run(main())


def test_a_role_without_authentication_lets_nobody_in() -> None:
    async def main() -> None:
        assert (await application().ask("GET", "/unguarded", token=ADMIN)).status == 401

    run(main())
