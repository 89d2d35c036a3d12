"""API keys: what is stored, what is remembered, who is let in, on every kind of route."""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any

import pytest

from fluxor_fast import App, HTTPError, Request, Response
from fluxor_fast.auth import apikeys as module
from fluxor_fast.auth.apikeys import (
    ApiKey,
    ApiKeys,
    StoredKey,
    api_key,
    bearer_or_key,
    digest,
    new_key,
)
from fluxor_fast.auth.roles import require_permission, require_role
from fluxor_fast.auth.tokens import Claims, Tokens
from fluxor_fast.errors import DatabaseBusy, RouteError
from tests.support.pure import Asker, document, run

NOW = 1_800_000_000
TOKENS = Tokens(b"s" * 32, 3600)


class Source:
    """A table of keys that counts the queries, and can be away or slow."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall = float(NOW)
        self.stored: dict[str, StoredKey] = {}
        self.asked: list[str] = []
        self.away = False
        self.gate: asyncio.Event | None = None
        self.keys = ApiKeys(self.fetch, lambda: self.wall, lambda: self.now)

    async def fetch(self, prefix: str) -> StoredKey | None:
        self.asked.append(prefix)
        found = self.stored.get(prefix)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise DatabaseBusy
        return found

    def make(self, expires_at: float | None = None, **user: Any) -> str:
        text, prefix, hashed = new_key()
        claims = Claims(
            1, "a@example.com", ("user",), NOW, NOW + 60, user.get("permissions", ("read",))
        )
        key = ApiKey(len(self.stored) + 1, prefix, "test", "premium", claims, expires_at)
        self.stored[prefix] = StoredKey(key, hashed)
        return text


def who(request: Request) -> dict[str, Any]:
    key = request.state.get("api_key")
    return {"user": request.state["user"].user_id, "key": key and key.name}


async def who_async(request: Request) -> dict[str, Any]:
    return who(request)


class Service(Asker):
    def __init__(self) -> None:
        self.source = Source()
        app = App()
        by_key = api_key(lambda request: self.source.keys)
        either = bearer_or_key(lambda request: TOKENS, lambda request: self.source.keys)
        for kind, handler in (("blocking", who), ("async", who_async)):
            options: dict[str, Any] = {"blocking": kind == "blocking"}
            app.get(f"/{kind}/key", middleware=(by_key,), **options)(handler)
            app.get(f"/{kind}/either", middleware=(either,), **options)(handler)
            guard = (either, require_role("user"), require_permission("read"))
            app.get(f"/{kind}/guarded", middleware=guard, **options)(handler)
        super().__init__(app)

    async def show(self, path: str, key: str | None, **options: Any) -> Response:
        headers = {} if key is None else {"X-API-Key": key}
        route, _ = self.router.match("GET", path)
        if route.kind.value == "blocking":  # its thread, as the worker has it
            return await asyncio.to_thread(
                lambda: asyncio.run(self.ask("GET", path, headers=headers, **options))
            )
        return await self.ask("GET", path, headers=headers, **options)


def test_what_is_stored_does_not_give_the_key_away() -> None:
    text, prefix, hashed = new_key(lambda count: "ab" * count)
    assert text == f"fxk_{'ab' * 8}_{'ab' * 32}"
    assert prefix == "fxk_" + "ab" * 8
    assert hashed == hashlib.sha256(text.encode()).digest() == digest(text)
    made = {new_key()[0] for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"fxk_[0-9a-f]{16}_[0-9a-f]{64}", one) for one in made)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_who_gets_in(kind: str) -> None:
    async def main() -> None:
        service = Service()
        key = service.source.make()
        for path in ("key", "either", "guarded"):
            answer = await service.show(f"/{kind}/{path}", key)
            assert document(answer) == {"user": 1, "key": "test"}
            refused = await service.show(f"/{kind}/{path}", None)
            assert (refused.status, document(refused)["code"]) == (401, "UNAUTHORIZED")
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert service.source.asked == [key[:20]]
        token = TOKENS.issue(7, "b@example.com", ["user"])
        answer = await service.show(f"/{kind}/either", None, token=token)
        assert document(answer) == {"user": 7, "key": None}
        assert (await service.show(f"/{kind}/key", None, token=token)).status == 401
        assert (await service.show(f"/{kind}/guarded", None, token=token)).status == 403
        # with both the token counts, good or not
        answer = await service.show(f"/{kind}/either", key, token=token)
        assert document(answer) == {"user": 7, "key": None}
        assert (await service.show(f"/{kind}/either", key, token="bad")).status == 401
        none = service.source.make(permissions=())
        assert (await service.show(f"/{kind}/guarded", none)).status == 403

    run(main())


def test_a_plain_handler_is_refused_as_it_cannot_wait() -> None:
    app = App()
    layer = api_key(lambda request: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(RouteError, match="/x: api_key may have to wait"):
        app.get("/x", middleware=[layer])(who)
    app.get("/x")(who)
    app.add_middleware(layer)
    with pytest.raises(RouteError, match="/x: api_key may have to wait"):
        app.router()


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"),
        lambda key: key[:-1],
        lambda key: key + "0",
        lambda key: key.upper(),
        lambda key: key[:20],
        lambda key: "fxk_" + "0" * 16 + key[20:],
        lambda key: f"{key}, {key}",
        lambda key: key + "\n",
        lambda key: "",
        lambda key: "é",
        lambda key: "x" * 8000,
        lambda key: "' or 1=1 --",
    ],
)
def test_keys_that_are_not_good(change: Any) -> None:
    async def main() -> None:
        service = Service()
        key = service.source.make()
        for _ in range(2):
            refused = await service.show("/async/key", change(key))
            assert (refused.status, document(refused)["code"]) == (401, "UNAUTHORIZED")
            assert document(refused)["message"] == "the API key is not valid"
        assert (await service.show("/async/key", key)).status == 200

    run(main())


def test_a_query_each_ten_seconds_for_good_and_for_bad() -> None:
    async def main() -> None:
        service = Service()
        source = service.source
        key, absent = source.make(), new_key()[0]
        wrong = key[:-4] + ("0000" if key[-4:] != "0000" else "1111")
        for round_ in range(1, 4):
            for _ in range(5):
                assert (await service.show("/async/key", key)).status == 200
                assert (await service.show("/async/key", absent)).status == 401
                assert (await service.show("/async/key", wrong)).status == 401
            assert len(source.asked) == 2 * round_
            source.now += module.REMEMBER

    run(main())


def test_revoked_elsewhere_it_works_for_ten_seconds_and_here_not_at_all() -> None:
    async def main() -> None:
        service = Service()
        source = service.source
        key = source.make()
        assert (await service.show("/async/key", key)).status == 200
        stored = source.stored.pop(key[:20])
        source.now += module.REMEMBER - 0.1
        assert (await service.show("/async/key", key)).status == 200
        source.now += 0.1
        assert (await service.show("/async/key", key)).status == 401
        source.keys.forget(key[:20])
        source.stored[key[:20]] = stored
        assert (await service.show("/async/key", key)).status == 200
        del source.stored[key[:20]]
        source.keys.forget(key[:20])
        assert (await service.show("/async/key", key)).status == 401

    run(main())


def test_what_is_under_way_when_a_key_is_revoked_is_not_remembered() -> None:
    async def main() -> None:
        service = Service()
        source = service.source
        key, source.gate = source.make(), asyncio.Event()
        early = asyncio.ensure_future(service.show("/async/key", key))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del source.stored[key[:20]]
        source.keys.forget(key[:20])
        source.gate.set()
        await early
        assert (await service.show("/async/key", key)).status == 401

    run(main())


def test_expiry_is_looked_at_each_time() -> None:
    async def main() -> None:
        service = Service()
        key = service.source.make(NOW + 5)
        assert (await service.show("/async/key", key)).status == 200
        service.source.wall += 5
        refused = await service.show("/async/key", key)
        assert (refused.status, document(refused)["code"]) == (401, "KEY_EXPIRED")
        assert len(service.source.asked) == 1

    run(main())


def test_all_who_wait_share_one_query_and_who_gives_up_does_not_end_it() -> None:
    async def main() -> None:
        service = Service()
        source = service.source
        key, source.gate = source.make(), asyncio.Event()
        waiting = [asyncio.ensure_future(service.show("/async/key", key)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        source.gate.set()
        answers = await asyncio.gather(*waiting[1:])
        assert {answer.status for answer in answers} == {200}
        assert len(source.asked) == 1
        assert not source.keys._pending

    run(main())


def test_without_its_source_a_key_is_good_for_as_long_as_it_is_remembered() -> None:
    async def main() -> None:
        service = Service()
        source = service.source
        key = source.make()
        assert (await service.show("/async/key", key)).status == 200
        source.away = True
        assert (await service.show("/async/key", key)).status == 200
        source.now += module.REMEMBER
        assert (await service.show("/async/key", key)).status == 503
        source.away = False
        assert (await service.show("/async/key", key)).status == 200

    run(main())


def test_invented_prefixes_push_out_no_real_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 5)

    async def main() -> None:
        source = Source()
        key = source.make()
        for text in [key, *(new_key()[0] for _ in range(50))]:
            try:
                await source.keys.look_up(text[:20], digest(text))
            except HTTPError as refused:
                assert refused.status == 401
        assert (len(source.keys._present), len(source.keys._absent)) == (1, 5)
        assert source.keys.remembered(key[:20], digest(key)) is not None

    run(main())


def test_the_token_counts_though_another_layer_has_read_the_key() -> None:
    text, prefix, hashed = new_key()
    of_key = Claims(1, "key@example.org", (), 0, 2**40)
    tokens = Tokens(b"k" * 32, 3600)

    async def stored(wanted: str) -> StoredKey | None:
        return StoredKey(ApiKey(1, prefix, "x", "standard", of_key, None), hashed)

    async def main() -> None:
        keys = ApiKeys(stored)
        both = (api_key(lambda r: keys), bearer_or_key(lambda r: tokens, lambda r: keys))
        app = App()

        @app.get("/", middleware=both)
        async def who(request: Request) -> dict[str, int]:
            return {"user": request.state["user"].user_id}

        token = tokens.issue(2, "a@example.org", ["user"])
        headers = {"X-API-Key": text, "Authorization": f"Bearer {token}"}
        asker = Asker(app)
        assert document(await asker.ask("GET", "/", headers=headers)) == {"user": 2}
        headers["Authorization"] = "Bearer nonsense"
        assert (await asker.ask("GET", "/", headers=headers)).status == 401

    run(main())
