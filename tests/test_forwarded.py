"""What trusted proxies say of a client, and what others do not get through."""

from __future__ import annotations

import ipaddress
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.server.forwarded import HOPS, Proxies, elements, node
from tests.support.inprocess import trust
from tests.support.pure import make_request
from tests.support.seeds import examples, seeded

PEER = "10.0.0.1"
NEAR = ("10.0.0.0/8",)
FAR = ("10.0.0.0/8", "192.0.2.0/24", "2001:db8:1::/48")

# what stands in the field (read from the right), what is trusted, the client
BOTH_FIELDS: list[tuple[tuple[str, ...], tuple[str, ...], str]] = [
    ((), NEAR, PEER),
    (("203.0.113.9",), (), PEER),
    (("203.0.113.9",), ("192.0.2.0/24",), PEER),
    (("203.0.113.9",), NEAR, "203.0.113.9"),
    (("198.51.100.1", "203.0.113.9"), NEAR, "203.0.113.9"),
    (("198.51.100.1", "192.0.2.7"), FAR, "198.51.100.1"),
    (("made up", "198.51.100.1", "192.0.2.7", "10.1.1.1"), FAR, "198.51.100.1"),
    (("192.0.2.8", "192.0.2.7"), FAR, "192.0.2.8"),  # all trusted: the outermost
    (("203.0.113.9", ""), NEAR, PEER),
    (("203.0.113.9", "unknown"), NEAR, PEER),
    (("203.0.113.9", "_hidden"), NEAR, PEER),
    (("203.0.113.9", "unix:"), NEAR, PEER),
    (("203.0.113.9", "unix"), (*NEAR, "unix"), PEER),
    (("203.0.113.9", "nonsense", "192.0.2.7"), FAR, "192.0.2.7"),
    (("203.0.113.9:4711",), NEAR, "203.0.113.9"),
    (("203.0.113.9:_port",), NEAR, "203.0.113.9"),
    (("203.0.113.9:",), NEAR, PEER),
    (("203.0.113.9:123456",), NEAR, PEER),
    (("2001:db8::1",), NEAR, "2001:db8::1"),
    (("[2001:DB8:0::1]",), NEAR, "2001:db8::1"),
    (("[2001:db8::1]:4711",), NEAR, "2001:db8::1"),
    (("[fe80::1%eth0]:4711",), NEAR, "fe80::1"),
    (("[::ffff:203.0.113.9]:1",), NEAR, "203.0.113.9"),
    (("203.0.113.9", "::ffff:192.0.2.7"), FAR, "203.0.113.9"),
    (("198.51.100.1", "[2001:db8:1::7]:80"), FAR, "198.51.100.1"),
    (("[203.0.113.9]",), NEAR, PEER),
    (("[2001:db8::1",), NEAR, PEER),
    (("2001:db8::1]:80",), NEAR, PEER),
    (("[]",), NEAR, PEER),
]


def request(*lines: tuple[str, str]) -> Any:
    """Return the head of a request with these fields, where names may repeat."""
    return make_request(fields=lines).head


def quoted(hop: str) -> str:
    return f'for="{hop}"' if set(hop) & set(":[] %") else f"for={hop}"


@pytest.mark.parametrize(("hops", "trusted", "client"), BOTH_FIELDS)
@pytest.mark.parametrize("glue", [",", ", ", " ,\t", None])
def test_the_client_by_x_forwarded_for(
    hops: tuple[str, ...], trusted: tuple[str, ...], client: str, glue: str | None
) -> None:
    name = "X-Forwarded-For"
    lines = [(name, hop) for hop in hops] if glue is None else [(name, glue.join(hops))]
    assert Proxies(trust(*trusted)).client(PEER, request(*lines)) == client


@pytest.mark.parametrize(("hops", "trusted", "client"), BOTH_FIELDS)
@pytest.mark.parametrize("glue", [",", ", ", " ,\t", None])
@pytest.mark.parametrize(
    "around", ["{}", "proto=http;{}", "{};by=_x;host=a.example", 'a="x,;=y"; {} ;b="z,"']
)
def test_the_client_by_forwarded(
    hops: tuple[str, ...], trusted: tuple[str, ...], client: str, glue: str | None, around: str
) -> None:
    parts = [around.format(quoted(hop)) for hop in hops]
    lines = [("Forwarded", p) for p in parts] if glue is None else [("Forwarded", glue.join(parts))]
    assert Proxies(trust(*trusted), "forwarded").client(PEER, request(*lines)) == client


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_only_the_fields_that_the_proxies_keep_are_looked_at(header: Any) -> None:
    kept = [
        ("Forwarded", "for=203.0.113.1;proto=https;host=one.example"),
        ("X-Forwarded-For", "203.0.113.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "two.example"),
        ("Host", "own.example"),
    ]
    others = {
        "x-forwarded-for": lambda name: name == "Forwarded",
        "forwarded": lambda name: name.startswith("X-"),
    }[header]
    proxies = Proxies(trust(*NEAR), header)
    with_both, alone = request(*kept), request(*(one for one in kept if others(one[0])))
    answers = {"x-forwarded-for": ("203.0.113.2", "two.example")}
    client, host = answers.get(header, ("203.0.113.1", "one.example"))
    assert proxies.client(PEER, with_both) == client
    assert proxies.scheme(PEER, "http", with_both) == "https"
    assert proxies.host(PEER, with_both) == host
    assert proxies.client(PEER, alone) == PEER
    assert proxies.scheme(PEER, "http", alone) == "http"
    assert proxies.host(PEER, alone) == ""


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
@pytest.mark.parametrize("peer", ["198.51.100.1", "unix", ""])
def test_who_is_not_trusted_says_nothing(header: Any, peer: str) -> None:
    head = request(
        ("Forwarded", "for=203.0.113.1;proto=https;host=one.example"),
        ("X-Forwarded-For", "203.0.113.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "two.example"),
        ("Host", "own.example"),
    )
    proxies = Proxies(trust(*NEAR), header)
    assert proxies.client(peer, head) == peer
    assert proxies.scheme(peer, "http", head) == "http"
    assert proxies.host(peer, head) == "own.example"


@pytest.mark.parametrize(
    ("said", "scheme"),
    [
        ("https", "https"),
        ("HTTPS", "https"),
        ("http", "http"),
        ("http, https", "https"),
        ("https, http", "http"),  # a client's own "https", to which the proxy has added
        ("https,", "https-own"),
        ("ws", "https-own"),
        ("https\t", "https"),
        ("https evil", "https-own"),
        ("", "https-own"),
    ],
)
def test_the_scheme_is_the_nearest_proxys_word(said: str, scheme: str) -> None:
    proxies = Proxies(trust(*NEAR))
    head = request(("X-Forwarded-Proto", said))
    own = "https" if scheme == "https-own" else "http"
    assert proxies.scheme(PEER, own, head) == scheme.removesuffix("-own")


@pytest.mark.parametrize(
    ("said", "host"),
    [
        ("shop.example", "shop.example"),
        ("shop.example:8443", "shop.example:8443"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
        ("evil.example, shop.example", "shop.example"),
        ("", "own.example"),
        ("a b", "own.example"),
        ("a/b", "own.example"),
        ("a@b", "own.example"),
        ("a:b", "own.example"),
        ("<script>", "own.example"),
        ("b\xfccher.example", "own.example"),
        ("x" * 300, "own.example"),
    ],
)
def test_the_host_is_the_nearest_proxys_word(said: str, host: str) -> None:
    head = request(("Host", "own.example"), ("X-Forwarded-Host", said))
    assert Proxies(trust(*NEAR)).host(PEER, head) == host
    head = request(("Host", "own.example"), ("Forwarded", f'for=1.2.3.4;host="{said}"'))
    if "," not in said:
        assert Proxies(trust(*NEAR), "forwarded").host(PEER, head) == host


@pytest.mark.parametrize(
    ("field", "client", "scheme", "host"),
    [
        # RFC 7239, sections 4 and 7.1
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17", "http", "own"),
        ("for=198.51.100.17;proto=http;by=203.0.113.60", "198.51.100.17", "http", "own"),
        ('for=198.51.100.2;proto=https, for="192.0.2.7:80"', "198.51.100.2", "https", "own"),
        # the outermost trusted proxy has the last word; what it does not say, the nearer one
        (
            "for=198.51.100.2;proto=https;host=shop, for=192.0.2.7;proto=http;host=inner",
            "198.51.100.2", "https", "shop",
        ),
        ("for=198.51.100.2, for=192.0.2.7;proto=https;host=inner",
         "198.51.100.2", "https", "inner"),
        (
            'for=198.51.100.2;proto=ftp;host="", for=192.0.2.7;proto=https;host=inner',
            "198.51.100.2", "https", "inner",
        ),
        # an element that is malformed says nothing, and those before it are not looked at
        ("for=198.51.100.2, for=198.51.100.2;host=, for=192.0.2.7;proto=https",
         "192.0.2.7", "https", "own"),
        # a parameter may be missing
        ("for=203.0.113.9;", "203.0.113.9", "http", "own"),
        (";;for=203.0.113.9 ; ;proto=https;", "203.0.113.9", "https", "own"),
        # what is left of the client's address is the client's own
        ("for=1.1.1.1;proto=https;host=evil, for=203.0.113.9", "203.0.113.9", "http", "own"),
        # an entry without an address still is the proxy's
        ("for=1.1.1.1, proto=https;host=shop", PEER, "https", "shop"),
        ("for=1.1.1.1, for=_hidden;proto=https", PEER, "https", "own"),
        # ports without the quotes that they should have
        ("for=203.0.113.9:80;host=shop:8443;proto=https", "203.0.113.9", "https", "shop:8443"),
        # malformed
        ("for=203.0.113.9;proto=https;proto=http", PEER, "http", "own"),
        ("for=203.0.113.9;For=203.0.113.8", PEER, "http", "own"),
        (";", PEER, "http", "own"),
        ("for=203.0.113.9,;", PEER, "http", "own"),
        ("for=203.0.113.9 proto=http", PEER, "http", "own"),
        ('for=203.0.113.9;proto="http"x', PEER, "http", "own"),
        ("for = 203.0.113.9", PEER, "http", "own"),
        ("for=", PEER, "http", "own"),
        ("=203.0.113.9", PEER, "http", "own"),
        ("203.0.113.9", PEER, "http", "own"),
        ('for="203.0.113.9', PEER, "http", "own"),
        ('for=203.0.113.9"', PEER, "http", "own"),
        ('for="203.0.113.9\\"', PEER, "http", "own"),
        ('for="203.0.\\113.9"', PEER, "http", "own"),
        ("for=203.0.113.9;" + ";".join(f"p{at}=1" for at in range(20)), PEER, "http", "own"),
    ],
)  # fmt: skip
def test_elements_of_forwarded(field: str, client: str, scheme: str, host: str) -> None:
    proxies = Proxies(trust(*FAR), "forwarded")
    head = request(("Host", "own"), ("Forwarded", field))
    assert proxies.client(PEER, head) == client
    assert proxies.scheme(PEER, "http", head) == scheme
    assert proxies.host(PEER, head) == host


ATTACKS = (
    'for="', 'for="1.1.1.1', '"', '\\"', "\\", ",", ";", "=", 'a="\\', "for=1.1.1.1;", "for=",
    '", ', "for=10.0.0.9", 'for="10.0.0.9, ', "proto=https", " ", "\t", "x=y;", "[", "10.0.0.9",
    "unknown",
)  # fmt: skip


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_whatever_a_client_writes_first_the_proxys_entry_means_the_same(header: Any) -> None:
    """One trusted proxy, which adds behind a comma to what the client sent."""
    rng = seeded(f"forwarded {header}")
    proxies = Proxies(trust(*NEAR), header)
    added = {
        "x-forwarded-for": ("203.0.113.9", "203.0.113.9:80"),
        "forwarded": ('for="203.0.113.9:80";proto=http;host="a,b"', "proto=http;for=203.0.113.9"),
    }[header]
    for _ in range(20_000):
        written = "".join(rng.choices(ATTACKS, k=rng.randint(0, 8)))
        glue = rng.choice([",", ", "])
        head = request((header, written + glue + rng.choice(added)), ("Host", "own"))
        assert proxies.client(PEER, head) == "203.0.113.9", written
        assert proxies.scheme(PEER, "http", head) == "http", written
        assert proxies.host(PEER, head) == "own", written


def is_an_address(text: str) -> bool:
    return str(ipaddress.ip_address(text)) == text


@given(st.text(st.characters(max_codepoint=255), max_size=60), st.sampled_from(NEAR + FAR))
@examples(500)
def test_nothing_but_an_address_gets_out(text: str, network: str) -> None:
    head = request(("Host", "own"), *((name, text) for name in (
        "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded")))  # fmt: skip
    for header in ("x-forwarded-for", "forwarded"):
        proxies = Proxies(trust(network, *NEAR), header)  # type: ignore[arg-type]
        assert is_an_address(proxies.client(PEER, head))
        assert proxies.scheme(PEER, "http", head) in ("http", "https")
        host = proxies.host(PEER, head)
        assert host.isascii() and host.isprintable() and not set(host) & set(" <>\"'/@\\")


def mutated(text: str, rng: random.Random) -> str:
    chars = list(text)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(chars) + 1)
        chars[at : at + rng.randint(0, 2)] = rng.choice('",;=\\[:9')
    return "".join(chars)


def test_mutated_fields_never_raise_and_never_yield_anything_but_addresses() -> None:
    rng = seeded("mutated forwarding fields")
    good = (
        'for="[2001:db8::1]:80";proto=https;host="a.example:1", for=192.0.2.7;by=_x',
        "198.51.100.1, 192.0.2.7:80, [2001:db8:1::1]:443",
    )
    for _ in range(10_000):
        field = mutated(rng.choice(good), rng)
        for header in ("x-forwarded-for", "forwarded"):
            head = request((header, field))
            assert is_an_address(Proxies(trust(*FAR), header).client(PEER, head)), field  # type: ignore[arg-type]


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
def test_a_chain_is_followed_so_far_and_no_further(header: Any) -> None:
    start = "for=" if header == "forwarded" else ""
    chain = ["203.0.113.9", *(f"10.0.1.{at}" for at in range(HOPS - 1, 0, -1))]
    proxies = Proxies(trust(*NEAR), header)
    field = ", ".join(start + hop for hop in chain)
    assert proxies.client(PEER, request((header, field))) == "203.0.113.9"
    field += f", {start}10.0.1.200"
    assert proxies.client(PEER, request((header, field))) == f"10.0.1.{HOPS - 1}"


@pytest.mark.parametrize(
    "field",
    ["," * 60_000, "a" * 60_000, '"' * 60_000, "a=b;" * 15_000, " " * 60_000, '="' * 30_000,
     "10.0.0.1," * 6000, "for=10.0.0.1," * 5000, ";" * 60_000, "a" + ";" * 60_000 + "b",
     "a=b" + "; " * 30_000 + "x", "[" * 60_000, "1:" * 30_000,
     'for="' + "\t" * 60_000, "\t" * 60_000 + "=a", "a=b" + " " * 60_000 + "x"],
)  # fmt: skip
def test_long_fields_cost_little(field: str) -> None:
    head = request(("X-Forwarded-For", field), ("Forwarded", field))
    began = time.process_time()
    for header in ("x-forwarded-for", "forwarded"):
        proxies = Proxies(trust(*NEAR), header)  # type: ignore[arg-type]
        proxies.client(PEER, head)
        proxies.scheme(PEER, "http", head)
        proxies.host(PEER, head)
    assert time.process_time() - began < 0.1


def test_what_the_pure_parts_return() -> None:
    assert list(elements('for=a;Proto="b c", x="";y=1')) == [
        {"y": "1", "x": ""},
        {"proto": "b c", "for": "a"},
    ]
    assert list(elements("")) == []
    assert node(" 203.0.113.9 ") == "203.0.113.9"


def test_the_host_of_a_target_in_absolute_form_counts() -> None:
    head = request(("Host", "own.example"))
    head.authority = "target.example:80"
    proxies = Proxies(trust(*NEAR))
    assert proxies.host(PEER, head) == "target.example:80"
    assert proxies.host("203.0.113.9", head) == "target.example:80"
