"""The router, against a matcher that is too simple to be wrong."""

from __future__ import annotations

import itertools
import re
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxor_fast.errors import HTTPError, RouteError
from fluxor_fast.routing import Route, Router, parameters_of
from tests.support.pure import make_request

RANKS = {"literal": 0, "int": 1, "uuid": 2, "str": 3, "path": 4}
A_UUID = "12345678-1234-5678-1234-567812345678"


def handler(request: Any, **params: Any) -> None: ...


def naive(patterns: list[str], path: str) -> tuple[str, list[Any]] | None:
    """Try every pattern on its own; of those that match, the most exact from the left wins."""
    segments = [unquote(segment) for segment in path[1:].split("/")]
    found = []
    for pattern in patterns:
        wanted = pattern[1:].split("/")
        ranks, values = [], []
        for at, want in enumerate(wanted):
            match = re.fullmatch(r"\{\w+(?::(\w+))?\}", want)
            kind = "literal" if match is None else match[1] or "str"
            if at >= len(segments):
                break
            have = segments[at]
            ranks.append(RANKS[kind])
            if kind == "path":
                values.append("/".join(segments[at:]))
                found.append((ranks, pattern, values))
                break
            if kind == "literal":
                if have != want:
                    break
            elif kind == "int":
                if not re.fullmatch("[0-9]{1,18}", have):
                    break
                values.append(int(have))
            elif kind == "uuid":
                if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", have, re.I):
                    break
                values.append(UUID(have))
            else:
                if not have:
                    break
                values.append(have)
        else:
            if len(segments) == len(wanted):
                found.append((ranks, pattern, values))
    if not found:
        return None
    _, pattern, values = min(found, key=lambda entry: entry[0])
    return pattern, values


def named(kinds: tuple[str, ...]) -> str:
    """Return a pattern with its parameters named by position: a, b, c …"""
    return "/" + "/".join(
        kind if not kind.startswith("{") else kind.replace("x", "abcdef"[at], 1)
        for at, kind in enumerate(kinds)
    )


segment = st.sampled_from(["a", "b", "1", "{x}", "{x:int}", "{x:uuid}"])
pattern = st.builds(
    lambda middle, last: named((*middle, *last)),
    st.lists(segment, min_size=1, max_size=4),
    st.sampled_from([(), (), ("{x:path}",), ("",)]),
)
piece = st.sampled_from(
    ["a", "b", "c", "1", "007", "-1", "1.0", "٣", "9" * 18, "9" * 19, "", "a/b", "é", "%", "+", " ",
     A_UUID, A_UUID.upper(), A_UUID.replace("-", ""), "{" + A_UUID + "}", "."]
)  # fmt: skip


@given(
    st.lists(pattern, min_size=1, max_size=8, unique=True),
    st.lists(piece, min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_it_finds_what_a_naive_matcher_finds(
    patterns: list[str], pieces: list[str], random: Any
) -> None:
    path = "/" + "/".join(quote(piece, safe="") for piece in pieces)
    expected = naive(patterns, path)
    random.shuffle(patterns)  # the order of registration is of no matter
    router = Router([Route("GET", pattern, handler) for pattern in patterns])
    route, params = router.match("GET", path)
    if expected is None:
        assert route.path == "*"
    else:
        assert (route.path, list(params.values())) == expected
        assert list(params) == list(parameters_of(route.path))


@given(st.text())
def test_any_path_is_answered(text: str) -> None:
    router = Router([Route("GET", path, handler) for path in ("/", "/a/{b}", "/f/{p:path}")])
    route, params = router.match("GET", "/" + text)
    assert isinstance(route, Route)
    assert isinstance(params, dict)


def test_the_more_exact_wins_and_a_dead_end_backs_up() -> None:
    paths = [
        "/{a:path}",
        "/u/{a}",
        "/u/{a:int}",
        "/u/{a:uuid}",
        "/u/me",
        "/u/{a:int}/x",
        "/u/{a}/y",
    ]
    expected = {
        "/u/me": "/u/me",
        "/u/5": "/u/{a:int}",
        f"/u/{A_UUID}": "/u/{a:uuid}",
        "/u/you": "/u/{a}",
        "/u/5/x": "/u/{a:int}/x",
        "/u/5/y": "/u/{a}/y",
        "/u/5/z": "/{a:path}",
        "/": "/{a:path}",
    }
    for order in itertools.islice(itertools.permutations(paths), 0, None, 97):
        router = Router([Route("GET", path, handler) for path in order])
        assert {path: router.match("GET", path)[0].path for path in expected} == expected


def test_segments_are_split_before_they_are_decoded() -> None:
    router = Router([Route("GET", "/f/{name}", handler), Route("GET", "/p/{rest:path}", handler)])
    assert router.match("GET", "/f/a%2Fb")[1] == {"name": "a/b"}
    assert router.match("GET", "/f/a/b")[0].path == "*"
    assert router.match("GET", "/f/%C3%A9+%25")[1] == {"name": "é+%"}
    assert router.match("GET", "/p/a/b%2Fc/")[1] == {"rest": "a/b/c/"}
    assert router.match("GET", "/p/")[1] == {"rest": ""}
    assert router.match("GET", "/p")[0].path == "*"
    assert router.match("GET", "/f/%ff")[0].path == "*"
    assert router.match("GET", "/%66/x")[1] == {"name": "x"}


def answer(router: Router, method: str, path: str) -> Any:
    route, params = router.match(method, path)
    return route.call(make_request(method, path, route=route, params=params))


def test_head_options_and_wrong_methods() -> None:
    get, post = Route("GET", "/x/{a}", handler), Route("POST", "/x/{a}", handler)
    only_post = Route("POST", "/y", handler)
    router = Router([get, post, only_post])
    assert router.match("HEAD", "/x/1")[0] is get
    assert router.match("POST", "/x/1")[0] is post
    told = answer(router, "OPTIONS", "/x/1")
    assert (told.status, told.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    for method, path, allow in (
        ("DELETE", "/x/1", "GET, HEAD, OPTIONS, POST"),
        ("get", "/x/1", "GET, HEAD, OPTIONS, POST"),  # methods have a case
        ("HEAD", "/y", "OPTIONS, POST"),
    ):
        with pytest.raises(HTTPError) as caught:
            answer(router, method, path)
        assert (caught.value.status, caught.value.headers["Allow"]) == (405, allow)
    assert answer(router, "OPTIONS", "*").status == 204  # though there is no route for "/"
    with pytest.raises(HTTPError) as caught:
        answer(router, "GET", "/z")
    assert caught.value.status == 404


def test_an_explicit_head_or_options_is_taken() -> None:
    head, options = Route("HEAD", "/x", handler), Route("OPTIONS", "/x", handler)
    router = Router([Route("GET", "/x", handler), head, options])
    assert router.match("HEAD", "/x")[0] is head
    assert router.match("OPTIONS", "/x")[0] is options


@pytest.mark.parametrize(
    "paths",
    [
        ["x"],
        [""],
        ["/{"],
        ["/{}"],
        ["/a{b}"],
        ["/{a}b"],
        ["/{a:float}"],
        ["/{a}/{a}"],
        ["/{a:path}/b"],
        ["/{1a}"],
        ["/a", "/a"],
        ["/{a}", "/{a}"],
        ["/{a:path}", "/{a:path}"],
    ],
)
def test_bad_paths_and_clashes(paths: list[str]) -> None:
    with pytest.raises(RouteError):
        Router([Route("GET", path, handler) for path in paths])


def test_methods_of_a_path_agree_on_names() -> None:
    for first, second in (("/{a}", "/{b}"), ("/{a:path}", "/{b:path}")):
        with pytest.raises(RouteError, match="names"):
            Router([Route("GET", first, handler), Route("POST", second, handler)])
    Router([Route("GET", "/{a}/x", handler), Route("POST", "/{b}/y", handler)])


def test_the_work_is_bounded_by_the_tree_not_by_the_path() -> None:
    # every node has all kinds of branches, and none of them ever ends
    shapes = itertools.product(["1", "{x:int}", "{x}"], repeat=5)
    router = Router([Route("GET", named((*shape, "end")), handler) for shape in shapes])
    assert router.match("GET", "/1/1/1/1/1/other")[0].path == "*"
    assert router.match("GET", "/1" * 8000)[0].path == "*"


def test_a_path_with_other_methods_only_gives_way_to_a_less_exact_one() -> None:
    router = Router(
        [
            Route("GET", "/users/me", lambda request: "me"),
            Route("GET", "/users/{id:int}", lambda request, id: id),
            Route("DELETE", "/users/{name}", lambda request, name: name),
        ]
    )
    route, params = router.match("DELETE", "/users/5")
    assert (route.path, params) == ("/users/{name}", {"name": "5"})
    assert router.match("DELETE", "/users/me")[0].path == "/users/{name}"
    assert router.match("HEAD", "/users/me")[0].path == "/users/me"
    assert router.match("PUT", "/users/5")[0].path == "/users/{id:int}"  # its 405
