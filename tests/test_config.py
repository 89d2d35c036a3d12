"""Settings: precedence, faults told all at once, secrets kept, the capacity model."""

import os
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path

import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxor_fast import config
from fluxor_fast.config import (
    AuthSettings,
    Capacity,
    DatabaseSettings,
    ServerSettings,
    Settings,
    knobs,
    load,
    masked,
    secrets_of,
)
from fluxor_fast.errors import ConfigError

SECRET = "correct-horse-battery-staple-0123456789"


@pytest.fixture
def file(tmp_path):
    """Write a YAML file and return its path."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(config=None, environ=None, flags=None):
    with pytest.raises(ConfigError) as caught:
        load(config, environ or {}, flags or {})
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(len(line.splitlines()) == 1 for line in caught.value.problems)
    return caught.value.problems


def problem(*args, **kwargs):
    found = problems(*args, **kwargs)
    assert len(found) == 1, found
    return found[0]


# --- precedence ---------------------------------------------------------------------------


def test_defaults_are_those_of_the_documentation():
    server = load(environ={}).server
    assert (server.app, server.host, server.port) == ("fluxor_fast.service:app", "127.0.0.1", 8080)
    assert server.workers == "auto"
    assert server.worker_count == len(os.sched_getaffinity(0))
    assert server.capacity == Capacity(5000, 3350, 335, 3015, 5000)
    assert load(environ={}) == Settings()


def test_each_source_beats_the_one_before(file):
    path = file("server: {max_ccu: 1000, port: 1001, backlog: 1002, threads: 3}")
    environ = {"FLUXOR_PORT": "2001", "FLUXOR_BACKLOG": "2002", "PORT": "2999"}
    server = load(path, environ, {"server.backlog": "3002", "server.threads": None}).server
    assert (server.max_ccu, server.port, server.backlog, server.threads) == (1000, 2001, 3002, 3)


@pytest.mark.parametrize(
    ("alias", "own", "path", "low", "high"),
    [
        ("PORT", "FLUXOR_PORT", "server.port", "81", "82"),
        ("DB_HOST", "FLUXOR_DATABASE_HOST", "database.host", "one", "two"),
        ("DATABASE_URL", "FLUXOR_DATABASE_URL", "database.url", "postgres://a", "postgres://b"),
        ("JWT_SECRET", "FLUXOR_JWT_SECRET", "auth.jwt_secret", "a" * 32, "b" * 32),
    ],
)
def test_plain_variables_are_below_our_own_and_above_the_file(file, alias, own, path, low, high):
    section, name = path.split(".")
    written = file(f"{section}: {{{name}: {low[:-1]}{low[-1]}}}")

    def value(environ):
        found = getattr(getattr(load(written, environ), section), name)
        return found.get_secret_value() if isinstance(found, pydantic.SecretStr) else str(found)

    assert value({}) == low
    assert value({alias: high}) == high
    assert value({own: high, alias: low}) == high


def test_an_overridden_plain_variable_belongs_to_someone_else():
    environ = {"DATABASE_URL": "mysql://elsewhere", "FLUXOR_DATABASE_URL": "postgresql://here/"}
    assert load(environ=environ).database.effective_url == "postgresql://here/"


def test_path_of_the_file(file, tmp_path):
    path = file("server: {port: 1}")
    other = tmp_path / "other.yaml"
    other.write_text("server: {port: 2}")
    assert load(environ={"CONFIG_PATH": str(path)}).server.port == 1
    both = {"CONFIG_PATH": str(path), "FLUXOR_CONFIG": str(other)}
    assert load(environ=both).server.port == 2
    assert load(path, both).server.port == 1


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("FLUXOR_SERVICE_NAME", "from-the-process")
    assert load().observability.service_name == "from-the-process"


@pytest.mark.parametrize("text", ["", "# nothing\n", "server:\n", "server: {}\nauth: ~\n", "---\n"])
def test_nothing_in_the_file_is_fine(file, text):
    assert load(file(text), {}) == Settings()


def test_null_and_the_empty_string_mean_not_given(file):
    path = file("server:\n  port: 81\n  slots:\n  max_ccu: null\nauth: {jwt_secret: ~}\n")
    environ = {"FLUXOR_PORT": "", "PORT": "", "JWT_SECRET": "", "DB_HOST": "", "CONFIG_PATH": ""}
    assert load(path, environ) == Settings(server=ServerSettings(port=81))


def test_every_knob_can_be_given_in_every_way(file):
    """The default itself, or another good value, from each source; nothing is read twice."""
    special = {
        "database.url": "postgresql://h/",
        "redis.url": "redis://h/0",
        "auth.jwt_secret": "k" * 32,
        "auth.jwt_previous_secret": "p" * 32,
        "server.trusted_proxies": "10.0.0.0/8,unix",
        "server.fd": 3,
        "database.host": "db",
        "database.embedded": "/tmp/pg",
        "web.cors_origins": "https://a.example.com,*",
        "web.trusted_hosts": "a.example.com,*.b",
    }
    needs = {  # what is refused without these
        "tls.key": {"certificate": "c"},
        "tls.key_password_file": {"certificate": "c"},
        "tls.client_ca": {"certificate": "c", "client_certificate": "optional"},
    }
    for knob in knobs():
        section, name = knob.path.split(".")
        value = special.get(knob.path, 1 if knob.default is None else knob.default)
        text = str(value).lower() if knob.is_bool else str(value)
        others = needs.get(knob.path, {})
        expected = Settings.model_validate({section: {**others, name: text}})
        path = file(yaml.safe_dump({section: {**others, name: text}}))
        assert load(path, {}) == expected
        path = file(yaml.safe_dump({section: others}))
        assert load(path, {knob.env: text}) == expected
        assert load(path, {}, flags={knob.path: text}) == expected
        if knob.alias:
            assert load(path, {knob.alias: text}) == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"key": "k"}, "tls.key: there is no tls.certificate to go with it"),
        (
            {"certificate": "c", "client_certificate": "required"},
            "tls.client_certificate: required needs tls.client_ca",
        ),
        (
            {"certificate": "c", "client_ca": "a"},
            "tls.client_ca: tls.client_certificate is none, so it would not be used",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(file, given, line):
    assert problem(file(yaml.safe_dump({"tls": given}))) == line


# --- the file ------------------------------------------------------------------------------


def test_scalars_of_the_file_are_read_as_in_the_environment(file):
    path = file(
        "server:\n  port: 0080\n  dev: yes\n  app: no\n"
        "  trusted_proxies: [10.0.0.0/8, '2001:db8::/32']\n"
        "auth: {jwt_secret: 01234567890123456789012345678901}\n"
        "observability: {service_name: 2001-01-01}\n"
    )
    found = load(path, {})
    assert (found.server.port, found.server.dev, found.server.app) == (80, True, "no")
    assert found.auth.jwt_secret.get_secret_value() == "01234567890123456789012345678901"
    assert found.observability.service_name == "2001-01-01"
    networks = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
    assert found.server.trusted_proxies == networks
    environ = {"FLUXOR_TRUSTED_PROXIES": "10.0.0.0/8, 2001:db8::/32"}
    assert load(environ=environ).server.trusted_proxies == networks


def test_anchors_and_a_byte_order_mark(file):
    path = file("\ufeffserver: {header_timeout: &t 7, body_timeout: *t}")
    assert load(path, {}).server.body_timeout == 7.0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("server:\n\tport: 1\n", "line 2, column 1: found character '\\t' that cannot start"),
        ("server: {port: 1\n", "line 2, column 1: expected ',' or '}', but got '<stream end>'"),
        ("server:\n  port: 1\n   host: x\n", "line 3, column 8: mapping values are not allowed"),
        ("server: {}\n---\nauth: {}\n", "line 2, column 1: but found another document"),
        ("server:\n  port: 1\n  port: 2\n", "line 3, column 3: a key is given twice"),
        ("server: {}\nserver: {}\n", "line 2, column 1: a key is given twice"),
        ("server:\n  port: !!python/name:os.system\n", "line 2, column 9: a tag has no meaning"),
        ("server: {[1]: 2}\n", "line 1, column 10: found unhashable key"),
        ("server: &a {port: *a}\n", "line 1, column 9: found unconstructable recursive node"),
        ("server: \0\n", "position 9: special characters are not allowed"),
        (b"server: \xff\n", "position 9: invalid start byte"),
        ("[" * 5000, "cannot be read: nested too deeply"),
        ("- server\n", "is not a mapping of sections"),
        ("server\n", "is not a mapping of sections"),
    ],
)
def test_faults_of_yaml_are_one_line_with_their_place(file, text, place):
    path = file(text)
    assert problem(path).startswith(f"{path}: {place}")


def test_a_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "absent.yaml"
    assert problem(path) == f"{path}: cannot be read: No such file or directory"
    assert problem(environ={"CONFIG_PATH": str(path)}).startswith(f"{path}: ")
    assert problem(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_bad_file_does_not_hide_other_faults(tmp_path):
    found = problems(tmp_path, {"FLUXOR_SLOTS": "x"}, {"server.port": "y"})
    assert [line.split(":")[0] for line in found] == [str(tmp_path), "FLUXOR_SLOTS", "--port"]


# --- faults --------------------------------------------------------------------------------


def test_all_faults_of_all_sources_at_once(file):
    path = file(
        "server:\n  max_ccu: many\n  max_cu: 7\n  port: 65536\n"
        "databse: {}\nauth: nothing\nobservability: {log_level: loud}\n"
    )
    environ = {"FLUXOR_SLOTS": "0", "FLUXOR_SLOT": "5", "PORT": "http"}
    flags = {"server.utilization": 0, "server.workers": "some", "server.dev": "perhaps"}
    assert sorted(problems(path, environ, flags)) == sorted(
        [
            f"{path}: server.max_ccu: 'many' is not a valid integer",
            f"{path}: server.max_cu: no such setting; did you mean server.max_ccu?",
            f"{path}: server.port: 65536: must be less than or equal to 65535",
            f"{path}: databse: no such setting; did you mean database?",
            f"{path}: auth: is not a mapping of keys to values",
            f"{path}: observability.log_level: 'loud': must be 'debug', 'info', 'warning' or"
            " 'error'",
            "FLUXOR_SLOTS: 0: must be greater than or equal to 1",
            "FLUXOR_SLOT: no such setting; did you mean FLUXOR_SLOTS?",
            "PORT: 'http' is not a valid integer",
            "--utilization: 0: must be greater than or equal to 1",
            "--workers: 'some' is not a valid integer or 'auto'",
            "--dev: 'perhaps' is not a valid boolean",
        ]
    )


def test_a_bad_value_is_told_even_where_it_is_overridden(file):
    path = file("server: {port: x}")
    assert problem(path, {}, {"server.port": 1}).startswith(f"{path}: server.port: 'x' is not")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("server.port", -1),
        ("server.utilization", 101),
        ("server.utilization", "66.7"),
        ("server.workers", 0),
        ("server.max_ccu", 0),
        ("server.max_ccu", "9" * 5000),
        ("server.max_queue", -1),
        ("server.max_connections", 0),
        ("server.max_connections_per_client", -1),
        ("server.min_body_rate", "1 KB"),
        ("server.max_connection_age", "inf"),
        ("server.backlog", 2**31),
        ("server.queue_deadline", 0),
        ("server.queue_deadline", "nan"),
        ("server.queue_deadline", "inf"),
        ("server.graceful_timeout", 30_000_000),
        ("server.host", " "[:0]),
        ("server.trusted_proxies", "10.0.0.1/8"),
        ("server.trusted_proxies", "10.0.0.0/8,,"),
        ("server.trusted_proxies", 10),
        ("server.trusted_proxies", "unix:"),
        ("server.forwarded_header", "X-Real-IP"),
        ("server.fd", 2),
        ("server.uds_mode", "0o660"),
        ("server.uds_mode", "888"),
        ("server.uds_mode", "1777"),
        ("server.trusted_proxies", ["10.0.0.0/8", None]),
        ("server.app", ["a"]),
        ("server.slots", {"a": 1}),
        ("database.pool_max", 0),
        ("database.host", "db:5433"),
        ("database.host", "db/../x y"),
        ("auth.token_seconds", 0),
        ("observability.service_name", 5),
    ],
)
def test_out_of_range_or_of_the_wrong_type(path, value):
    knob = next(knob for knob in knobs() if knob.path == path)
    line = problem(flags={path: value})
    assert line.startswith(f"{knob.flag}: ")
    assert len(line) < 250


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("server.port", 0),
        ("server.max_queue", 0),
        ("server.max_connections_per_client", 0),
        ("server.max_connection_age", 0),
        ("server.keep_alive_requests", 0),
        ("server.min_body_rate", 0),
        ("server.min_write_rate", 0),
        ("server.graceful_timeout", 0),
        ("server.utilization", 100),
        ("database.pool_min", 0),
        ("database.host", "::1"),
        ("database.host", "/run/postgresql"),
    ],
)
def test_the_edges_of_ranges_are_inside(path, value):
    section, name = path.split(".")
    assert getattr(getattr(load(environ={}, flags={path: value}), section), name) == value


def test_did_you_mean_finds_the_section_too(file):
    path = file("max_ccu: 5\n")
    assert problem(path).endswith("max_ccu: no such setting; did you mean server.max_ccu?")
    path = file("server: {jwt_secret: x}\n")
    assert problem(path).endswith(
        "server.jwt_secret: no such setting; did you mean auth.jwt_secret?"
    )


def test_no_suggestion_where_nothing_is_alike(file):
    assert problem(file("zzzzzzzz: 1\n")).endswith(": zzzzzzzz: no such setting")


def test_variables_that_kubernetes_makes_for_a_service_of_our_name():
    """A service called fluxor, fluxor-fast or fluxor-max must not keep the pods from starting."""
    environ = {
        "FLUXOR_PORT": "tcp://10.0.0.7:80",
        "FLUXOR_SERVICE_HOST": "10.0.0.7",
        "FLUXOR_SERVICE_PORT": "80",
        "FLUXOR_SERVICE_PORT_HTTP": "80",
        "FLUXOR_PORT_80_TCP": "tcp://10.0.0.7:80",
        "FLUXOR_PORT_80_TCP_PROTO": "tcp",
        "FLUXOR_FAST_PORT": "tcp://10.0.0.8:80",
        "FLUXOR_FAST_SERVICE_HOST": "10.0.0.8",
        "FLUXOR_FAST_PORT_80_TCP_ADDR": "10.0.0.8",
        "PORT": "9000",
    }
    assert load(environ=environ) == Settings(server=ServerSettings(port=9000))


def test_other_variables_are_not_ours():
    assert load(environ={"PATH": "/bin", "FLUX": "1", "fluxor_slots": "x"}) == Settings()


# --- the capacity model --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Capacity(5000, 3350, 335, 3015, 5000)),
        # The three presets: high throughput, low latency, vertical scaling.
        (
            {"max_ccu": 5000, "slots": 1000, "max_queue": 2000},
            Capacity(5000, 3350, 1000, 2000, 5000),
        ),
        (
            {"max_ccu": 2000, "slots": 500, "max_queue": 1000},
            Capacity(2000, 1340, 500, 1000, 2000),
        ),
        ({"max_ccu": 15_000}, Capacity(15_000, 10_050, 500, 9550, 15_000)),
        ({"max_ccu": 100}, Capacity(100, 67, 50, 100, 100)),
        ({"max_ccu": 10}, Capacity(10, 6, 10, 100, 10)),
        ({"max_ccu": 1, "utilization": 1}, Capacity(1, 1, 1, 100, 1)),
        ({"max_ccu": 4, "slots": 9, "max_queue": 0}, Capacity(4, 2, 4, 0, 4)),
        ({"max_connections": 7}, Capacity(5000, 3350, 335, 3015, 7)),
        ({"utilization": 100}, Capacity(5000, 5000, 500, 4500, 5000)),
    ],
)
def test_capacity(given, expected):
    assert ServerSettings(**given).capacity == expected


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, 2500),
        ({"max_connections": 7}, 3),
        ({"max_connections": 1}, 1),  # not 0: that would be any number
        ({"max_connections_per_client": 0}, 0),
        ({"max_connections_per_client": 9000}, 9000),
    ],
)
def test_connections_per_client(given, most):
    assert ServerSettings(**given).connections_per_client == most


@settings(database=None)
@given(
    max_ccu=st.integers(1, 10**6),
    utilization=st.integers(1, 100),
    slots=st.none() | st.integers(1, 10**6),
    max_queue=st.none() | st.integers(0, 10**6),
)
def test_capacity_is_consistent(max_ccu, utilization, slots, max_queue):
    server = ServerSettings(
        max_ccu=max_ccu, utilization=utilization, slots=slots, max_queue=max_queue
    )
    found = server.capacity
    assert found.max_ccu == found.max_connections == max_ccu
    assert 1 <= found.normal <= max_ccu
    assert found.normal == 1 or 0 <= max_ccu * utilization - 100 * found.normal < 100
    assert 1 <= found.slots <= max_ccu
    if slots is not None:
        assert found.slots == min(slots, max_ccu)
    else:
        assert min(50, max_ccu) <= found.slots <= 500
    if max_queue is not None:
        assert found.max_queue == max_queue
    else:
        assert found.max_queue >= 100
        assert found.slots + found.max_queue >= found.normal  # all that is normal finds a place


@settings(database=None)
@given(st.integers(1, 10**6), st.integers(1, 99))
def test_more_users_or_more_utilization_never_mean_less_capacity(max_ccu, utilization):
    here = ServerSettings(max_ccu=max_ccu, utilization=utilization).capacity
    for more in (
        ServerSettings(max_ccu=max_ccu + 1, utilization=utilization),
        ServerSettings(max_ccu=max_ccu, utilization=utilization + 1),
    ):
        assert more.capacity.normal >= here.normal
        assert more.capacity.slots >= here.slots


# --- the database --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_ccu", "sizes"),
    [
        (1, (10, 100)),
        (2999, (10, 100)),
        (3000, (50, 200)),
        (10_000, (50, 200)),
        (10_001, (100, 300)),
    ],
)
def test_pool_sizes_by_load(max_ccu, sizes):
    assert DatabaseSettings().pool_sizes(max_ccu) == sizes


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"pool_max": 20}, (20, 20)),
        ({"pool_max": 90}, (50, 90)),
        ({"pool_min": 0}, (0, 200)),
        ({"pool_min": 250}, (250, 250)),
        ({"pool_min": 2, "pool_max": 4}, (2, 4)),
        ({"pool_min": 4, "pool_max": 2}, (2, 2)),
    ],
)
def test_explicit_pool_sizes(given, sizes):
    assert DatabaseSettings(**given).pool_sizes(5000) == sizes


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        (None, None, None),
        ("postgresql://u:p@old/db", None, "postgresql://u:p@old/db"),
        (None, "db", "postgresql://db/"),
        ("postgresql://u:p%40@old:5433/db", "new", "postgresql://u:p%40@new:5433/db"),
        ("postgres://u@old/db?sslmode=require", "new", "postgres://u@new/db?sslmode=require"),
        ("postgresql:///db", "new", "postgresql://new/db"),
        ("postgresql://old", "new", "postgresql://new/"),
        ("postgresql://u:p@[::1]:5433/db", "new", "postgresql://u:p@new:5433/db"),
        ("postgresql://u:p@[::1]/db", "new", "postgresql://u:p@new/db"),
        ("postgresql://u:5@old/db", "::1", "postgresql://u:5@[::1]/db"),
        ("postgresql://u@old:1/db", "/run/pg", "postgresql://u@%2Frun%2Fpg:1/db"),
        ("postgresql://a:1,b:2/db", "new", "postgresql://new:1/db"),
        # A host among the parameters would win, so it goes; the others stay as written.
        ("postgresql:///db?host=/run&options=-c+a", "n", "postgresql://n/db?options=-c+a"),
        ("postgresql:///db?hostaddr=1.2.3.4", "n", "postgresql://n/db"),
    ],
)
def test_host_goes_into_the_url(url, host, expected):
    environ = {"DATABASE_URL": url or "", "DB_HOST": host or ""}
    assert load(environ=environ).database.effective_url == expected


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@h/db",
        "postgresql:u:hunter2@h",
        "u:hunter2@h/db",
        "postgresql://u:hunter2#x@h/db",
        "postgresql://u:hunter2?x@h/db",
        "postgresql://u:hunter2/x@h/db",
        "postgresql://u:1/hunter2@h/db",
        "postgresql://u:hunter2@x@h/db",
        "postgresql://u:hunter2 @h/db",
        "postgresql://u:hunter2\n@h/db",
        "postgresql://u:hunter2é@h/db",
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:hunter2@[h/db",
        "postgresql://u:hunter2@h/db\udcff",
    ],
)
def test_bad_urls_are_refused_without_showing_the_password(file, url):
    for line in (
        problem(environ={"DATABASE_URL": url}),
        problem(environ={}, flags={"database.url": url}),
        problem(environ={"DB_HOST": url}),  # in the wrong place
        problem(environ={}, flags={"server.trusted_proxies": url}),
        problem(environ={}, flags={"server.max_ccu": url}),
    ):
        assert "hunter2" not in line
    with pytest.raises(pydantic.ValidationError) as caught:
        DatabaseSettings(url=url)
    assert "hunter2" not in str(caught.value)


# --- secrets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hunter2@h",
        "redis:u:hunter2@h",
        "redis://u:hunter2@x@h/0",
        "redis://u:hunter2#@h/0",
        "redis://:hunter2@h,i/0",
        "redis://:hunter2é@h",
        "redis://h/0?password=hunter2",
        "redis://h/0?decode_responses=true",
        "unix:///run/redis?db=1&timeout=3",
    ],
)
def test_redis_urls_that_another_reader_would_take_for_something_else(url):
    with pytest.raises(ConfigError) as caught:
        load(environ={"REDIS_URL": url})
    (problem,) = caught.value.problems
    assert problem.startswith("REDIS_URL: must")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("rediss://app:hunter2@h:6380/1", "rediss://app:********@h:6380/1"),
        ("redis://:hunter2@h", "redis://:********@h"),
        ("unix://:hunter2@/run/redis.sock?db=2", "unix://:********@/run/redis.sock?db=2"),
        (
            "rediss://h/0?ssl_ca_certs=/ca&ssl_password=hunter2",
            "rediss://h/0?ssl_ca_certs=/ca&ssl_password=********",
        ),
    ],
)
def test_the_password_of_redis_is_not_shown(url, shown):
    settings = load(environ={"REDIS_URL": url})
    assert yaml.safe_load(masked(settings))["redis"]["url"] == shown
    assert ("hunter2" in url) == ("hunter2" in list(secrets_of(settings)))


@pytest.mark.parametrize("secret", ["x" * 31, "é" * 15 + "x", "x" * 40 + "\udcff"])
def test_a_weak_jwt_secret_is_refused_and_not_shown(secret):
    line = problem(environ={"JWT_SECRET": secret})
    assert line == "JWT_SECRET: must be at least 32 bytes long, and UTF-8"
    with pytest.raises(pydantic.ValidationError) as caught:
        AuthSettings(jwt_secret=secret)
    assert secret not in str(caught.value)


def test_length_of_a_jwt_secret_is_in_bytes():
    assert load(environ={"JWT_SECRET": "é" * 16}).auth.jwt_secret is not None


@pytest.mark.parametrize(
    "text",
    [
        f"auth:\n  jwt_secret:{SECRET}\n",
        f"auth:\n  jwt_secret:{SECRET}\n  token_seconds: 5\n",
        f"auth: {{jwt_secret:{SECRET}}}\n",
        f"auth: {{jwt_secre: {SECRET}}}\n",
        f"auth: {{jwt_secret: [{SECRET}]}}\n",
        f"auth: {{jwt_secret: {{a: {SECRET}}}}}\n",
        f"auth: {{jwt_secret: *{SECRET}}}\n",
        f"auth: {{jwt_secret: !{SECRET} }}\n",
        f"auth: {{jwt_secret: !{SECRET}!x }}\n",
        f"auth: {{jwt_secret: !!{SECRET} }}\n",
        f"auth: {{jwt_secret: '{SECRET}}}\n",
        f'auth: {{jwt_secret: "{SECRET}\\q"}}\n',
        f"auth: {{jwt_secret: {SECRET}, jwt_secret: {SECRET}}}\n",
        f"auth: {{jwt_secret: &{SECRET} a, token_seconds: &{SECRET} b}}\n",
        f"jwt_secret: {SECRET}\n",
        f"{SECRET}",
        f"jwt_secret:{SECRET}",
        f"jwt_secret:{SECRET}:\n  x: 1\n",
        f"server: {{max_ccu: {{jwt_secret: {SECRET}}}}}\n",
    ],
)
def test_no_fault_in_the_file_shows_the_secret(file, text):
    assert SECRET not in "\n".join(problems(file(text)))


def test_unknown_variables_are_told_by_name_only():
    line = problem(environ={"FLUXOR_JWT_SECRE": SECRET})
    assert line == "FLUXOR_JWT_SECRE: no such setting; did you mean FLUXOR_JWT_SECRET?"


def test_secrets_are_not_in_repr():
    found = load(environ={"JWT_SECRET": SECRET, "DATABASE_URL": "postgresql://u:hunter2@h/"})
    assert SECRET not in repr(found) + str(found)
    assert "hunter2" not in repr(found) + str(found)


# --- masked --------------------------------------------------------------------------------


def test_masked_shows_all_but_the_secrets():
    environ = {
        "JWT_SECRET": SECRET,
        "DATABASE_URL": "postgresql://u:hunter2@h:5433/db",
        "DB_HOST": "primary",
        "FLUXOR_TRUSTED_PROXIES": "10.0.0.0/8",
        "FLUXOR_DATABASE_EMBEDDED": "/data/pg",
    }
    found = load(environ=environ)
    text = masked(found)
    assert SECRET not in text
    assert "hunter2" not in text
    data = yaml.safe_load(text)
    assert data["auth"]["jwt_secret"] == "********"
    assert data["database"]["url"] == "postgresql://u:********@primary:5433/db"
    assert data["database"]["embedded"] == "/data/pg"
    assert data["server"]["trusted_proxies"] == ["10.0.0.0/8"]
    assert data["server"]["max_ccu"] == 5000
    pool = {"max_connections_per_client": 2500, "pool_min": 50, "pool_max": 200}
    assert data.pop("capacity") == asdict(found.server.capacity) | pool
    assert {f"{section}.{name}" for section in data for name in data[section]} == {
        knob.path for knob in knobs()
    }


def test_masked_without_secrets_can_be_read_again(file):
    data = yaml.safe_load(masked(load(environ={"DB_HOST": "db"})))
    assert data["auth"]["jwt_secret"] is None
    assert data.pop("capacity")["slots"] == 335
    again = load(file(yaml.safe_dump(data)), {})
    assert again.database.effective_url == "postgresql://db/"
    assert again.server == Settings().server


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u@h:5433/db", "postgresql://u@h:5433/db"),
        ("postgresql://u:@h/db", "postgresql://u:********@h/db"),
        ("postgresql://:hunter2@h", "postgresql://:********@h"),
        ("postgresql://u:a:hunter2@h/db", "postgresql://u:********@h/db"),
        ("postgresql://h:1,i:2/db", "postgresql://h:1,i:2/db"),
        (
            "postgresql:///db?user=u&password=hunter2&sslmode=require",
            "postgresql:///db?user=u&password=********&sslmode=require",
        ),
        ("postgresql:///db?pass%77ord=hunter2", "postgresql:///db?pass%77ord=********"),
        ("postgresql:///?sslpassword=hunter2", "postgresql:///?sslpassword=********"),
    ],
)
def test_masked_url(url, shown):
    text = masked(load(environ={"DATABASE_URL": url}))
    assert yaml.safe_load(text)["database"]["url"] == shown


# --- the definitions -----------------------------------------------------------------------


def test_names_of_knobs():
    table = {knob.path: knob for knob in knobs()}
    names = {path: (knob.flag, knob.env) for path, knob in table.items()}
    assert names["server.max_ccu"] == ("--max-ccu", "FLUXOR_MAX_CCU")
    assert names["database.pool_max"] == ("--database-pool-max", "FLUXOR_DATABASE_POOL_MAX")
    assert names["tls.key"] == ("--tls-key", "FLUXOR_TLS_KEY")
    assert names["database.url"] == ("--database-url", "FLUXOR_DATABASE_URL")
    assert names["auth.token_seconds"] == ("--token-seconds", "FLUXOR_TOKEN_SECONDS")
    assert names["auth.jwt_secret"] == (None, "FLUXOR_JWT_SECRET")
    assert names["observability.log_level"] == ("--log-level", "FLUXOR_LOG_LEVEL")
    assert table["server.port"].alias == "PORT"
    assert {path for path, knob in table.items() if knob.is_bool} == {
        "database.migrate",
        "server.adaptive",
        "server.pin",
        "server.dev",
        "server.proxy_protocol",
        "server.websocket_compression",
        "web.cors_credentials",
        "web.security_headers",
        "web.compression",
        "web.rate_limit",
        "web.docs",
        "observability.access_log",
    }
    assert {path for path, knob in table.items() if knob.is_secret} == {
        "auth.jwt_secret",
        "auth.jwt_previous_secret",
        "database.url",
        "redis.url",
    }


def test_names_are_unique_and_each_knob_is_described():
    found = list(knobs())
    for names in ([k.env for k in found], [k.flag for k in found if k.flag]):
        assert len(names) == len(set(names))
    assert not {"--config", "--help", "--version"} & {knob.flag for knob in found}
    for knob in found:
        assert len(knob.description) > 20, knob.path


def test_defaults_pass_their_own_checks():
    for section, default in Settings():
        again = type(default).model_validate(default.model_dump())
        assert again == default, section


def test_settings_are_immutable_and_closed():
    found = load(environ={})
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        found.server.port = 1
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        found.server = ServerSettings()
    with pytest.raises(pydantic.ValidationError, match="Extra"):
        ServerSettings(prot=1)


def test_workers_by_number():
    assert ServerSettings(workers=3).worker_count == 3
    assert load(environ={"FLUXOR_WORKERS": "auto"}).server.workers == "auto"


def test_config_imports_nothing_of_the_server():
    source = Path(config.__file__).read_text()
    lines = [line for line in source.splitlines() if line.startswith("from fluxor_fast")]
    assert lines == [
        "from fluxor_fast.errors import ConfigError",
        "from fluxor_fast.http.origins import read_host, read_origin",
    ]


def test_values_that_do_not_go_together_are_told():
    assert problem(environ={}, flags={"server.uds": "/s", "server.fd": "3"}) == (
        "uds and fd: only one of them can be listened on"
    )
    words = "proxy_protocol: trusted_proxies must say whose PROXY headers count"
    on = {"server.proxy_protocol": "true"}
    assert problem(environ={}, flags=on) == words
    assert problem(environ={}, flags={**on, "server.fd": "3"}) == words
    assert load(environ={}, flags={**on, "server.uds": "/s"}).server.proxy_protocol
    assert load(environ={}, flags={**on, "server.trusted_proxies": "unix"}).server.proxy_protocol
