"""Passwords: the parameters, the bound, and what an unknown user costs."""

from __future__ import annotations

import asyncio
import threading

import argon2
import pytest

from fluxor_fast.auth.passwords import Passwords
from fluxor_fast.errors import HTTPError
from tests.support.pure import run
from tests.support.server import eventually


def test_a_password_verifies_and_another_does_not() -> None:
    async def main() -> None:
        passwords = Passwords(threads=1, queue=4)
        hashed = await passwords.hash("correct horse")
        assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert hashed != await passwords.hash("correct horse")  # salted
        assert await passwords.verify(hashed, "correct horse")
        assert not await passwords.verify(hashed, "correct horse ")
        assert not await passwords.verify("not a hash", "correct horse")
        assert passwords.pending == 0
        passwords.close()

    run(main())


def test_nobody_verifies_and_the_hash_is_worked_on_all_the_same() -> None:
    async def main() -> None:
        passwords = Passwords(threads=1, queue=4)
        asked: list[str] = []
        matches = passwords._matches

        def spy(hashed: str, password: str) -> bool:
            asked.append(hashed)
            return matches(hashed, password)

        passwords._matches = spy  # type: ignore[method-assign]
        assert not await passwords.verify(None, "whatever")
        assert argon2.extract_parameters(asked[0]) == argon2.extract_parameters(
            await passwords.hash("x")
        )
        passwords.close()

    run(main())


def test_old_parameters_verify_and_ask_for_a_rehash() -> None:
    async def main() -> None:
        passwords = Passwords(threads=1, queue=4)
        old = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")
        assert await passwords.verify(old, "secret")
        assert passwords.needs_rehash(old)
        assert not passwords.needs_rehash(await passwords.hash("secret"))
        passwords.close()

    run(main())


def test_a_full_queue_refuses_and_forgets_nobody() -> None:
    async def main() -> None:
        passwords = Passwords(threads=1, queue=2)
        gate = threading.Event()
        entered = threading.Event()

        def matches(hashed: str, password: str) -> bool:
            entered.set()
            return gate.wait(10)

        passwords._matches = matches  # type: ignore[method-assign]
        tasks = [asyncio.create_task(passwords.verify("x", "x")) for _ in range(3)]
        await asyncio.sleep(0)
        assert passwords.pending == 3
        assert entered.wait(10)
        with pytest.raises(HTTPError) as caught:
            await passwords.verify("x", "x")
        assert (caught.value.status, caught.value.code) == (503, "HASHING_BUSY")
        assert caught.value.headers["Retry-After"] == "1"
        # one that only waited leaves at once, one in its thread when it is done
        tasks[2].cancel()
        tasks[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert passwords.pending == 2
        gate.set()
        assert await tasks[1]
        eventually(lambda: passwords.pending == 0, "all places free")
        passwords.close()

    run(main())


def test_hashing_leaves_the_loop_free() -> None:
    async def main() -> None:
        passwords = Passwords(threads=1, queue=8)
        work = asyncio.gather(*(passwords.hash("x") for _ in range(4)))
        turns = 0
        while not work.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 100
        passwords.close()

    run(main())


def test_after_close_nothing_is_pending() -> None:
    async def main() -> None:
        passwords = Passwords(threads=1, queue=8)
        passwords.close()
        with pytest.raises(RuntimeError):
            await passwords.hash("x")
        assert passwords.pending == 0

    run(main())
