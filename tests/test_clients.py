"""Connections by client address: never more than the limit, seldom refused early, nothing left."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from fluxor_fast.arbiter.shared import CLIENTS, SharedMemory
from fluxor_fast.server.admission import Fence, KernelLock, full_fence
from fluxor_fast.server.clients import LOOPBACK, ClientLimit, Place
from tests.support.forks import ended, forked
from tests.support.gates import assert_refused, make_app
from tests.support.inprocess import in_loop, serving, until
from tests.support.seeds import seeded
from tests.support.witness import OVERSHOOTS, Witness

FENCES = pytest.mark.parametrize("fence", [full_fence("x86_64"), None], ids=["fence", "lock"])


class Free:
    """A lock that nobody else wants."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None: ...


def words_of(workers: int, size: int) -> memoryview[int]:
    return memoryview(bytearray(8 * workers * size)).cast("Q")


def limit(
    most: int, *, size: int = CLIENTS, key: bytes = b"key", exempt: tuple[str, ...] = ()
) -> ClientLimit:
    networks = tuple(ip_network(one) for one in exempt)
    words = words_of(1, size)
    return ClientLimit(words, size, 0, full_fence(), Free(), key=key, most=most, exempt=networks)


def random_address(rng: random.Random) -> str:
    return str(IPv4Address(rng.getrandbits(32)))


# whose connections are counted together


def test_an_address_has_as_many_as_the_limit_and_one_more_for_each_that_goes() -> None:
    share = limit(3)
    places = [share.acquire("192.0.2.1") for _ in range(3)]
    assert share.acquire("192.0.2.1") is None
    assert share.acquire("192.0.2.2")
    assert places[0]
    share.release(places[0])
    assert share.acquire("192.0.2.1")
    assert share.acquire("192.0.2.1") is None


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),  # one /64
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),  # RFC 4291, section 2.5.5.2
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_which_addresses_are_one_client(one: str, other: str, together: bool) -> None:
    share = limit(1)
    assert share.acquire(one)
    assert (share.acquire(other) is None) is together


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7", "", "/run/app.sock", "unknown"],
)
def test_who_is_exempt_or_has_no_address_is_not_counted(address: str) -> None:
    share = limit(1, exempt=("10.0.0.0/8", "2001:db8::/32"))
    assert [share.acquire(address) for _ in range(5)] == [()] * 5
    share.release(())


def test_loopback_is_known_in_both_families() -> None:
    share = limit(1, exempt=tuple(str(one) for one in LOOPBACK))
    for address in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"):
        assert share.acquire(address) == ()


# the counting itself


@pytest.mark.parametrize("size", [2, 8, 64, CLIENTS])
def test_no_client_ever_has_more_however_small_the_table(size: int) -> None:
    """The estimate is never below the truth; afterwards every word is 0 again."""
    rng = seeded(f"clients {size}")
    most, workers = 4, 3
    words = words_of(workers, size)
    shares = [
        ClientLimit(words, size, index, full_fence(), Free(), key=b"k", most=most)
        for index in range(workers)
    ]
    addresses = [random_address(rng) for _ in range(12)]
    held: list[tuple[int, str, Place]] = []
    count = Counter[str]()
    refused = 0
    for _ in range(3000):
        if held and rng.random() < 0.4:
            index, address, place = held.pop(rng.randrange(len(held)))
            shares[index].release(place)
            count[address] -= 1
            continue
        index, address = rng.randrange(workers), rng.choice(addresses)
        got = shares[index].acquire(address)
        if got is None:
            refused += 1
            if size == CLIENTS:  # 12 addresses share no bucket here: it is exact
                assert count[address] == most
        else:
            held.append((index, address, got))
            count[address] += 1
            assert count[address] <= most
    assert refused
    for index, _, place in held:
        shares[index].release(place)
    assert not any(words)


@pytest.mark.parametrize(("connections", "clients"), [(5000, 200), (5000, 400), (20_000, 400)])
def test_how_often_a_client_is_refused_for_others_is_bounded(
    connections: int, clients: int
) -> None:
    """At most (C / (k x 4096))², here with others who fill as many buckets as they can."""
    rng = seeded(f"collisions {connections} {clients}")
    most = connections // clients
    share = limit(most, key=rng.randbytes(16))
    for _ in range(clients):
        address = random_address(rng)
        for _ in range(most):
            share.acquire(address)
    probes = 20_000
    refused = 0
    for _ in range(probes):
        place = share.acquire(str(IPv6Address(rng.getrandbits(128))))
        if place is None:
            refused += 1
        else:
            share.release(place)
    bound = (connections / (most * CLIENTS / 2)) ** 2
    print(f"{refused / probes:.3%} refused early, bound {bound:.3%}")
    assert refused / probes < bound + 3 * (bound / probes) ** 0.5  # three standard errors


def test_collisions_found_with_one_key_are_none_with_another() -> None:
    rng = seeded("collisions with another key")
    size, victim = 64, "192.0.2.1"
    ours, theirs = limit(1, size=size, key=b"ours"), limit(1, size=size, key=b"theirs")
    assert ours.acquire(victim) and theirs.acquire(victim)
    aimed = 0
    while aimed < 20:
        address = random_address(rng)
        place = ours.acquire(address)
        if place is not None:
            ours.release(place)
            continue
        aimed += 1
        place = theirs.acquire(address)
        if place is None:
            continue
        theirs.release(place)
        return
    raise AssertionError("what collides with one key collides with another")


# over processes


@FENCES
def test_processes_that_race_for_one_address_never_exceed_the_limit(fence: Fence | None) -> None:
    most, workers = 5, 3
    memory, witness = SharedMemory(workers), Witness(workers, most)

    def hammer(index: int) -> Callable[[], None]:
        rng = seeded(f"clients race {index}")

        def run() -> None:
            share = ClientLimit(
                memory.clients, CLIENTS, index, fence, KernelLock(memory.fd, 3),
                key=memory.key, most=most,
            )  # fmt: skip
            places: list[Place] = []
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                place = share.acquire("192.0.2.1")
                if place is not None:
                    witness.take(index, 1)
                    places.append(place)
                if places and (place is None or rng.random() < 0.5):
                    witness.give(index, 1)
                    share.release(places.pop())
            while places:
                witness.give(index, 1)
                share.release(places.pop())

        return run

    with forked(*(hammer(index) for index in range(workers))) as children:
        assert [ended(pid) for pid in children] == [0] * workers
    assert sum(witness._words[8 * index + OVERSHOOTS] for index in range(workers)) == 0
    assert not any(memory.clients)


def test_what_a_dead_worker_counted_is_free_again_when_it_is_folded() -> None:
    memory = SharedMemory(2)
    shares = [
        ClientLimit(
            memory.clients, CLIENTS, index, full_fence(), KernelLock(memory.fd, 3),
            key=memory.key, most=4,
        )
        for index in range(2)
    ]  # fmt: skip
    for share in (shares[0], shares[1], shares[1], shares[1]):
        assert share.acquire("192.0.2.1")
    assert shares[0].acquire("192.0.2.1") is None
    memory.fold(1)
    assert [shares[0].acquire("192.0.2.1") is None for _ in range(4)] == [False] * 3 + [True]
    memory.fold(0)
    assert not any(memory.clients)


# over connections


@in_loop
async def test_a_client_with_too_many_connections_is_told_and_closed() -> None:
    async with serving(make_app()[0], max_connections_per_client=2) as server:
        first, second = await server.connect(), await server.connect()
        assert (await first.get("/")).status == (await second.get("/")).status == 200
        third = await server.connect()
        (answer,) = await third.rest()
        assert_refused(answer, "client")
        assert answer.headers["connection"] == "close"
        assert sum(server.memory.connections) == 2
        assert server.counters()["client"] == 1
        first.close()
        await until(lambda: len(server.service.open) == 1, "the first is gone")
        fourth = await server.connect()
        assert (await fourth.get("/")).status == 200


@in_loop
async def test_a_trusted_proxy_has_any_number_of_connections() -> None:
    knobs = {"max_connections_per_client": 1, "trusted_proxies": ("127.0.0.0/8",)}
    async with serving(make_app()[0], **knobs) as server:
        for _ in range(3):
            assert (await (await server.connect()).get("/")).status == 200


@in_loop
async def test_an_address_learnt_later_is_counted_and_released_with_the_connection() -> None:
    """What comes through a proxy is counted when the proxy has said from where."""
    knobs = {"max_connections_per_client": 1, "trusted_proxies": ("127.0.0.0/8",)}
    async with serving(make_app()[0], **knobs) as server:
        client, protocol = await server.pair()
        _, other = await server.pair()
        assert protocol.count_for("192.0.2.1")
        assert not other.count_for("192.0.2.1")
        client.close()
        await until(lambda: protocol.closed, "it is gone")
        assert other.count_for("192.0.2.1")
        assert other.count_for("192.0.2.2")  # and now under this one alone
        _, third = await server.pair()
        assert third.count_for("192.0.2.1")
