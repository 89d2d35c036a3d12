"""Settings: one definition per knob, read from four places, all faults told at once.

* Precedence is default < YAML file < environment < command line flag. A knob has three names:
  ``server.max_ccu``, ``FLUXOR_MAX_CCU`` and ``--max-ccu``; those of ``tls``, ``database``,
  ``redis`` and ``cache`` are prefixed (``--database-url``); keys of tokens have no flag: everyone
  can read flags with ``ps``.
* ``PORT``, ``DB_HOST``, ``DATABASE_URL``, ``REDIS_URL`` and ``JWT_SECRET`` are read where the
  ``FLUXOR_…`` variable is not given. The file is that of ``--config``, ``FLUXOR_CONFIG`` or
  ``CONFIG_PATH``.
* Null in the file and the empty string in the environment mean "not given". The file's scalars
  are read as text, as in the environment: YAML's octal numbers and dates change what is meant.
* Every value is checked, even an overridden one. Unknown keys and ``FLUXOR_…`` variables are
  typing mistakes, so errors too. :func:`load` raises one ``ConfigError`` with a line for each
  fault: source, key, value (never that of a secret). Once checked, settings are immutable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic import ValidationError as Invalid

from fluxor_fast.errors import ConfigError
from fluxor_fast.http.origins import read_host, read_origin


def _networks(value: object) -> object:
    items = value.split(",") if isinstance(value, str) else value  # a list in the file
    try:
        names = [str(item).strip() for item in items]  # type: ignore[attr-defined]
        return tuple(name if name == "unix" else ip_network(name) for name in names)
    except (TypeError, ValueError):  # 10.0.0.1/8 may mean one host or a network
        raise ValueError("must be networks such as 10.0.0.0/8, without host bits") from None


def _names(value: object) -> object:
    items = value.split(",") if isinstance(value, str) else value  # a list in the file
    return tuple(str(item).strip() for item in items)  # type: ignore[attr-defined]


def _origins(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name != "*":
            read_origin(name)
    return names


def _hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        read_host(name)
    return names


def _long_enough(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()  # RFC 7518, 3.2: as long as the hash, which is 32 bytes
    if len(text.encode(errors="replace")) < 32 or re.search("[\ud800-\udfff]", text):
        raise ValueError("must be at least 32 bytes long, and UTF-8")
    return secret


_SERVER = r"(\[[\da-fA-F:.%]+\]|[^][@:/?#,\s]*)(:[0-9]*)?"
_URL = rf"([^@:/?#\s]*(:[^@/?#\s]*)?@)?{_SERVER}(,{_SERVER})*(/[^@?#\s]*)?(\?[^@#\s]*)?"


def _postgres_url(secret: SecretStr) -> SecretStr:
    """Refuse what libpq and urllib would read differently: masking must find the password."""
    scheme, _, rest = secret.get_secret_value().partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql:// or postgres://")
    if not re.fullmatch(_URL, rest) or not rest.isascii() or not rest.isprintable():
        raise ValueError("must be user:password@host:port/name, with @ : / ? # percent-encoded")
    return secret


def _redis_url(secret: SecretStr) -> SecretStr:
    """Refuse what redis-py would read differently, or take for options of its own."""
    scheme, _, rest = secret.get_secret_value().partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    place, _, options = rest.partition("?")
    known = re.fullmatch(r"((db|ssl_[a-z_]+)=[^&]*(&|$))*", options)
    if not re.fullmatch(_URL, place) or "," in place or not known or not rest.isascii():
        raise ValueError(
            "must be user:password@host:port/0, with @ : / ? # percent-encoded, or a path"
        )
    return secret


# No number exceeds a C int, and no wait a day: that is milliseconds written for seconds.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Size = Annotated[int, Field(ge=0, le=2**31 - 1)]
Few = Annotated[int, Field(ge=1, le=1024)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Percent = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Millis = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
# a loop writes its heartbeat twice a second
Silence = Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)]
Grace = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Second = Annotated[float, Field(ge=0, le=1)]  # the least that Retry-After can say
Text = Annotated[str, Field(min_length=1)]
Host = Annotated[str, Field(pattern=r"^([\w.-]+|/[\w./-]+|[\da-fA-F]*(:[\da-fA-F.]*){2,})$")]
Interface = Literal["auto", "app", "asgi"]
Level = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
Share = Annotated[float, Field(ge=0, le=1)]
Forwarding = Literal["x-forwarded-for", "forwarded"]
ClientCertificate = Literal["none", "optional", "required"]
Networks = Annotated[
    tuple[IPv4Network | IPv6Network | Literal["unix"], ...], BeforeValidator(_networks)
]
Names = Annotated[tuple[Text, ...], BeforeValidator(_names)]
Accounts = Annotated[int, Field(ge=1024, le=2**22, multiple_of=8)]
Origins = Annotated[Names, AfterValidator(_origins)]
Hosts = Annotated[Names, AfterValidator(_hosts)]
Descriptor = Annotated[int, Field(ge=3, le=2**31 - 1)]
Mode = Annotated[str, Field(pattern=r"^0?[0-7]{3}$")]
PostgresURL = Annotated[SecretStr, AfterValidator(_postgres_url)]
RedisURL = Annotated[SecretStr, AfterValidator(_redis_url)]
Key = Annotated[SecretStr, AfterValidator(_long_enough)]


def _knob(default: object, why: str) -> Any:
    return Field(default, description=why)


@dataclass(frozen=True)
class Capacity:
    """What one instance takes, over all its workers together."""

    max_ccu: int
    normal: int
    slots: int
    max_queue: int
    max_connections: int


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSettings(_Section):
    """Listener, capacity, time limits and sizes; per instance unless they say so."""

    app: Text = _knob("fluxor_fast.service:app", "module:attribute; the reference service")
    interface: Interface = _knob("auto", "an App, or asgi; auto, as it nearly always shows")
    host: Text = _knob("127.0.0.1", "address to listen on; not the world, unless you say so")
    port: Port = _knob(8080, "TCP port; needs no privileges (0 takes any free one)")
    uds: Path | None = _knob(None, "Unix socket to listen on instead; none, as clients are remote")
    uds_mode: Mode = _knob("660", "its permissions; its owner and group may connect, others not")
    fd: Descriptor | None = _knob(None, "inherited listening socket; systemd's first one is 3")
    listener: Literal["reuseport", "shared"] = _knob("reuseport", "one for each worker, or for all")
    workers: Few | Literal["auto"] = _knob("auto", "processes; auto, one for each usable core")
    max_ccu: Count = _knob(5000, "most users at once, running and waiting; the peak we test")
    utilization: Percent = _knob(67, "percent of max_ccu for normal routes; a third is reserve")
    slots: Count | None = _knob(None, "requests running; a tenth of normal (50..500): most wait")
    max_queue: Size | None = _knob(None, "requests waiting; normal - slots, but room for 100")
    max_connections: Count | None = _knob(None, "open connections; max_ccu, as each user has one")
    max_connections_per_client: Size | None = _knob(
        None, "of one address (IPv6: /64); half of them, but loopback any number; 0: any"
    )
    queue_deadline: Seconds = _knob(1.0, "seconds to wait for a slot; then clients have given up")
    queue_target: Grace = _knob(0.005, "seconds the oldest may wait before a queue stands; 0: any")
    queue_interval: Seconds = _knob(0.1, "seconds above it until a queue stands; spans bursts")
    refusal_pause: Second = _knob(0.5, "most seconds a refused connection stays unread; 0: none")
    graceful_timeout: Grace = _knob(30.0, "seconds for requests to end at a stop; as Kubernetes")
    drain_delay: Grace = _knob(0.0, "seconds /ready is 503 before a stop drains; 0: nobody asks")
    boot_timeout: Seconds = _knob(30.0, "seconds for a worker to get ready; an import can hang")
    heartbeat_timeout: Silence = _knob(30.0, "seconds a loop may stall until SIGKILL; it hangs")
    max_requests: Size = _knob(0, "of a worker until it is recycled, for leaky libraries; 0: any")
    max_requests_jitter: Size = _knob(
        0, "most requests more, drawn by each worker; not all at once"
    )
    max_worker_age: Grace = _knob(0.0, "seconds until a worker is recycled; 0: any, as none ages")
    max_worker_memory: Size = _knob(0, "resident MiB until a worker is recycled; 0: any")
    pin: bool = _knob(False, "each worker on a core of its own; off, as others may need that core")
    pid_file: Path | None = _knob(
        None, "file with the pid, locked: one instance; none, by the port"
    )
    control: Path | None = _knob(None, "Unix socket for fluxor-fast ctl; none, as signals do too")
    control_mode: Mode = _knob("600", "its permissions; only our own user and root may connect")
    backlog: Count = _knob(2048, "connections the kernel holds until accepted; for bursts")
    threads: Few = _knob(8, "blocking handlers at once, per worker; they share an interpreter")
    header_timeout: Seconds = _knob(10.0, "seconds for a whole head; trickled bytes hold a place")
    body_timeout: Seconds = _knob(30.0, "seconds for a whole body; max_body fits at 300 kbit/s")
    keep_alive_timeout: Seconds = _knob(75.0, "seconds unused; load balancers keep theirs 60")
    write_timeout: Seconds = _knob(30.0, "seconds an answer may stay unread; it holds a permit")
    max_connection_age: Grace = _knob(3600.0, "seconds; then the next answer closes it; 0: any")
    keep_alive_requests: Size = _knob(0, "on a connection, exact, costs speed; 0: by age alone")
    min_body_rate: Size = _knob(256, "bytes/s a body must come at, after 5 s; 0: any; trickling")
    min_write_rate: Size = _knob(256, "bytes/s a full buffer must be read at, as for bodies")
    max_head: Count = _knob(16_384, "bytes of request line and headers; room for large cookies")
    max_target: Count = _knob(8192, "bytes of the request target; RFC 9112 asks for 8000")
    max_headers: Count = _knob(100, "header lines; several times what browsers send")
    max_body: Size = _knob(1_048_576, "bytes of a body, held in memory; ample for JSON")
    body_memory: Size = _knob(134_217_728, "bytes of all unfinished bodies; slowest end; 0: any")
    max_pipeline: Count = _knob(32, "requests at once on a connection; so none takes all slots")
    rate_limit_accounts: Accounts = _knob(65_536, "accounts of rate limits; 16 MiB with 4 workers")
    websocket_max_message: Count = _knob(1_048_576, "bytes of a WebSocket message; as a body")
    websocket_ping_interval: Grace = _knob(20.0, "seconds silent until asked for life; 0: never")
    websocket_ping_timeout: Seconds = _knob(20.0, "seconds until one that was asked is dropped")
    websocket_compression: bool = _knob(False, "permessage-deflate; off: memory, time, leaks")
    adaptive: bool = _knob(False, "lower the limit while the service is slow; off: it is fixed")
    adaptive_floor: Count = _knob(20, "least the limit may adapt to; so that something is measured")
    slice_ms: Millis = _knob(2.0, "milliseconds of handlers per loop turn; then it looks around")
    trusted_proxies: Networks = _knob((), "networks, or unix, whose word on clients counts")
    forwarded_header: Forwarding = _knob("x-forwarded-for", "what they keep; else clients write it")
    proxy_protocol: bool = _knob(False, "a PROXY header begins each connection; clients send none")
    dev: bool = _knob(False, "development conveniences; off, as they are unsafe in public")

    @property
    def worker_count(self) -> int:
        """Number of worker processes, with ``auto`` resolved."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers

    @property
    def capacity(self) -> Capacity:
        """The capacity model: what was given explicitly, the rest derived."""
        normal = max(1, self.max_ccu * self.utilization // 100)
        slots = min(self.slots or min(max(normal // 10, 50), 500), self.max_ccu)
        queue = max(normal - slots, 100) if self.max_queue is None else self.max_queue
        return Capacity(self.max_ccu, normal, slots, queue, self.max_connections or self.max_ccu)

    @property
    def connections_per_client(self) -> int:
        """Most connections of one client address, over all workers; 0: any number."""
        if self.max_connections_per_client is None:
            return max(self.capacity.max_connections // 2, 1)
        return self.max_connections_per_client


class TlsSettings(_Section):
    """TLS on the listener; with ``certificate`` set there is nothing else on it."""

    certificate: Path | None = _knob(None, "PEM file, leaf first; none: a proxy in front has it")
    key: Path | None = _knob(None, "PEM file of the private key; none: it is in the certificate's")
    key_password_file: Path | None = _knob(None, "file with its password; servers often use none")
    minimum: Literal["1.2", "1.3"] = _knob("1.2", "least version of TLS; RFC 8996 forbids older")
    client_ca: Path | None = _knob(None, "PEM file of who signs client certificates; your own CA")
    client_certificate: ClientCertificate = _knob("none", "whether clients show one; few have any")


class DatabaseSettings(_Section):
    """PostgreSQL and its connection pool; counts are per instance, over all workers."""

    url: PostgresURL | None = _knob(None, "postgresql://…; none, as not every service has one")
    host: Host | None = _knob(None, "host put into the URL, so that one URL serves many places")
    embedded: Path | None = _knob(None, "data folder of an embedded PostgreSQL; for trials")
    pool_max: Count | None = _knob(None, "most connections; 100, 200 or 300 as max_ccu grows")
    pool_min: Size | None = _knob(None, "connections kept open; 10, 50 or 100 as max_ccu grows")
    pool_timeout: Seconds = _knob(2.0, "seconds to wait for a connection; then better a 503")
    max_waiting: Size = _knob(1000, "requests waiting for a connection; so not all slots do")
    lifetime: Seconds = _knob(1800.0, "seconds until a connection is replaced; follows failovers")
    idle: Seconds = _knob(300.0, "seconds until an unused connection closes; outlasts a lull")
    statement_timeout: Seconds = _knob(5.0, "seconds for a statement; a bad one must not hold on")
    connect_timeout: Seconds = _knob(3.0, "seconds to reach the server; a lost packet costs one")
    migrate: bool = _knob(True, "bring the tables up to date at the start; off: refuse old ones")

    def pool_sizes(self, max_ccu: int) -> tuple[int, int]:
        """Return (min, max); where one is explicit, the derived other one gives way."""
        load = (10, 100) if max_ccu < 3000 else (50, 200) if max_ccu <= 10_000 else (100, 300)
        low = load[0] if self.pool_min is None else self.pool_min
        high = self.pool_max or max(load[1], low)
        return min(low, high), high

    @property
    def effective_url(self) -> str | None:
        """The URL to connect to, its password included, with ``host`` put in."""
        url = self.url.get_secret_value() if self.url else None
        if self.host is None:
            return url
        scheme, netloc, path, query, _ = urlsplit(url or "postgresql:///")
        user, at, hosts = netloc.rpartition("@")
        port = re.search(r":[0-9]+$", hosts.split(",")[0])
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, "")
        # libpq would prefer a host among the parameters to the one before the path.
        kept = [p for p in query.split("&") if p.split("=")[0] not in ("", "host", "hostaddr")]
        place = f"{user}{at}{host}{port[0] if port else ''}"
        return urlunsplit((scheme, place, path or "/", "&".join(kept), ""))


class RedisSettings(_Section):
    """Redis, for what several instances share; counts are per instance, over all workers."""

    url: RedisURL | None = _knob(
        None, "redis://…, rediss://… or unix://…; none, as one can do without"
    )
    pool_max: Count = _knob(100, "most connections; a command holds one for well below a ms")
    pool_min: Size = _knob(20, "connections made at once; a burst need not wait for them")
    timeout: Seconds = _knob(
        0.1, "seconds for a command; it takes one ms, and there is another way"
    )
    connect_timeout: Seconds = _knob(0.5, "seconds to reach it; so it is back within a second")

    @property
    def secret_url(self) -> str | None:
        """The URL to connect to, its password included."""
        return self.url.get_secret_value() if self.url else None


class CacheSettings(_Section):
    """The cache in memory, per worker."""

    entries: Count = _knob(10_000, "most entries, per worker; as many users as are active at once")
    bytes: Count = _knob(16_777_216, "most bytes, of JSON, per worker; objects take more")


class AuthSettings(_Section):
    """Tokens and passwords."""

    jwt_secret: Key | None = _knob(None, "signs tokens, 32 bytes or more; none can be a default")
    jwt_previous_secret: Key | None = _knob(None, "still verifies; none, unless keys are changed")
    token_seconds: Count = _knob(
        86_400, "life of an access token; a day, for clients that never refresh"
    )
    refresh_seconds: Count = _knob(2_592_000, "life of a session; a month, then a new login")
    hash_threads: Few = _knob(1, "password hashes at once, per worker; each fills a core")
    hash_queue: Size = _knob(64, "hashes waiting, per worker; a login flood must not take slots")


class WebSettings(_Section):
    """What the reference service tells browsers."""

    cors_origins: Origins = _knob(
        (), "https://app.example.com, https://*.example.com or *; no page"
    )
    cors_credentials: bool = _knob(False, "let those pages send cookies; tokens need none")
    security_headers: bool = _knob(True, "headers that make browsers careful; they cost little")
    compression: bool = _knob(True, "compress answers of 1 KiB and more; clients ask for it")
    docs: bool = _knob(False, "a page at /docs; on with --dev: it asks people for tokens")
    trusted_hosts: Hosts = _knob((), "api.example.com or *.example.com; none: whatever is asked")
    rate_limit: bool = _knob(False, "1,000 a minute of an address; off: it may be a proxy's")


class ObservabilitySettings(_Section):
    """Logs, and the name of the service."""

    log_level: Level = _knob("info", "least level logged; info tells what the server does")
    log_format: LogFormat = _knob("console", "console or json; people read it first")
    log_file: Path | None = _knob(None, "file to append to, anew at USR1; none: standard error")
    access_log: bool = _knob(False, "a line for each request; 2.5 µs each, and off nothing")
    access_log_sample: Share = _knob(1.0, "share of requests logged; all, but failures always are")
    service_name: Text = _knob("fluxor-fast", "name in answers and logs, to tell services apart")


class Settings(_Section):
    """All settings."""

    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    cache: CacheSettings = CacheSettings()
    auth: AuthSettings = AuthSettings()
    web: WebSettings = WebSettings()
    observability: ObservabilitySettings = ObservabilitySettings()


_SECTIONS = {name: type(default) for name, default in Settings()}
_ALIASES = {"server.port": "PORT", "database.host": "DB_HOST", "database.url": "DATABASE_URL"}
_ALIASES |= {"redis.url": "REDIS_URL", "auth.jwt_secret": "JWT_SECRET"}
_PREFIXED = ("tls", "database", "redis", "cache")  # sections whose flags begin with their name
_KEYS = ("jwt_secret", "jwt_previous_secret")  # of ``auth``: without a flag
_SECRETS = (*(f"auth.{name}" for name in _KEYS), "database.url", "redis.url")


@dataclass(frozen=True)
class Knob:
    """One setting under all its names."""

    path: str
    flag: str | None
    env: str
    alias: str | None
    annotation: Any
    default: Any
    description: str
    is_bool: bool
    is_secret: bool


def knobs() -> Iterator[Knob]:
    """Yield every setting, in the order of definition."""
    for section, model in _SECTIONS.items():
        for name, field in model.model_fields.items():
            path, kind = f"{section}.{name}", field.annotation
            word = f"{section}_{name}" if section in _PREFIXED else name
            flag = None if name in _KEYS else "--" + word.replace("_", "-")
            names = (path, flag, f"FLUXOR_{word.upper()}", _ALIASES.get(path))
            about = (kind, field.default, field.description or "", kind is bool)
            yield Knob(*names, *about, is_secret=path in _SECRETS)


_Given = Iterator[tuple[str, Knob, object]]  # where (for messages), which knob, what value
# Kubernetes puts these into pods when a service is called fluxor or fluxor-fast.
_LINK = re.compile(r"FLUXOR_(\w*_)?(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP)|PORT=\w+://)")


def load(
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] = {},
) -> Settings:
    """Read all sources; the keys of ``flags`` are paths (``server.max_ccu``), None is absent."""
    table = {knob.path: knob for knob in knobs()}
    problems: list[str] = []
    file = config or environ.get("FLUXOR_CONFIG") or environ.get("CONFIG_PATH")
    given = list(_from_file(Path(file), table, problems)) if file else []
    env = {name: v for name, v in environ.items() if v and not _LINK.match(f"{name}={v}")}
    for knob in table.values():
        name = knob.env if knob.env in env else knob.alias
        given += [(name, knob, env[name])] if name in env else []
    names = ["FLUXOR_CONFIG", *(knob.env for knob in table.values())]
    problems += [_unknown("", n, names) for n in env if n.startswith("FLUXOR_") and n not in names]
    problems += [_unknown("", path, table) for path in flags if path not in table]
    given += [
        (table[p].flag or p, table[p], v) for p, v in flags.items() if p in table and v is not None
    ]
    values: dict[str, dict[str, object]] = {section: {} for section in _SECTIONS}
    for where, knob, value in given:
        section, name = knob.path.split(".")
        values[section][name] = value
        try:
            _SECTIONS[section].model_validate({name: value})
        except Invalid as error:
            problems.append(f"{where}: {_reason(knob, value, error)}")
    if problems:
        raise ConfigError([" ".join(problem.splitlines()) for problem in problems])
    settings = Settings.model_validate(values)
    if conflicts := list(_conflicts(settings)):
        raise ConfigError(conflicts)
    return settings


def _conflicts(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with values that are good by themselves."""
    server = settings.server
    if server.uds is not None and server.fd is not None:
        yield "uds and fd: only one of them can be listened on"
    if server.proxy_protocol and not server.trusted_proxies and server.uds is None:
        yield "proxy_protocol: trusted_proxies must say whose PROXY headers count"
    if "*" in settings.web.cors_origins and settings.web.cors_credentials:
        yield "cors_credentials: not with the origin *; every page would act for its visitor"
    tls = settings.tls
    if tls.certificate is None:
        for name in ("key", "key_password_file", "client_ca"):
            if getattr(tls, name) is not None:
                yield f"tls.{name}: there is no tls.certificate to go with it"
    if tls.client_certificate != "none" and tls.client_ca is None:
        yield f"tls.client_certificate: {tls.client_certificate} needs tls.client_ca"
    if tls.client_certificate == "none" and tls.client_ca is not None:
        yield "tls.client_ca: tls.client_certificate is none, so it would not be used"


class _Loader(yaml.BaseLoader):
    """YAML whose scalars are text or null; what would be lost in silence is refused."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag.rpartition(":")[2] not in ("str", "seq", "map"):
            raise yaml.MarkedYAMLError(None, None, "a tag has no meaning here", node.start_mark)
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for key in (k for i, k in enumerate(keys) if k.value in [o.value for o in keys[:i]]):
            raise yaml.MarkedYAMLError(None, None, "a key is given twice", key.start_mark)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        null = plain and node.value in ("", "~", "null", "Null", "NULL")
        return None if null else super().construct_object(node, deep)


def _from_file(path: Path, table: dict[str, Knob], problems: list[str]) -> _Given:
    data, fault = None, None
    try:
        data = yaml.load(path.read_bytes(), _Loader) or {}
    except (OSError, RecursionError) as error:
        fault = f"cannot be read: {getattr(error, 'strerror', 'nested too deeply')}"
    except yaml.reader.ReaderError as error:
        fault = f"position {error.position + 1}: {error.reason}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What is quoted may be part of a secret that begins with * or !, unless it is a mark.
        fault = re.sub(r"'[^'\s<]{3,}'|\"[^\"\s<]{3,}\"", "…", error.problem or "is not YAML")
        fault = f"line {mark.line + 1}, column {mark.column + 1}: {fault}" if mark else fault
    if not isinstance(data, dict):
        problems.append(f"{path}: {fault or 'is not a mapping of sections'}")
    for section, content in (data if isinstance(data, dict) else {}).items():
        if section not in _SECTIONS:
            problems.append(_unknown(f"{path}: ", section, [*_SECTIONS, *table]))
        elif not isinstance(content, dict | None):
            # Not shown, as it may be "jwt_secret:…" with the space forgotten.
            problems.append(f"{path}: {section}: is not a mapping of keys to values")
        else:
            for name, value in (content or {}).items():
                key = f"{section}.{name}"
                if key not in table:
                    problems.append(_unknown(f"{path}: ", key, table))
                elif value is not None:
                    yield f"{path}: {key}", table[key], value


def _unknown(where: str, name: object, known: Iterable[str]) -> str:
    word = str(name).partition(":")[0][:80]  # "jwt_secret:…" without its space may be a key
    close = get_close_matches(word, list(known), 1)
    return f"{where}{word}: no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _reason(knob: Knob, value: object, error: Invalid) -> str:
    first, *others = error.errors()
    text = re.sub(r"^Input should be (a valid \w+).*", r"is not \1", first["msg"])
    text = re.sub(r"^(Input|String) should", "must", text.replace("Value error, ", ""))
    text += "".join(f" or {other['ctx']['expected']}" for other in others)
    if knob.is_secret:
        return text
    shown = "a mapping" if isinstance(value, dict) else str(value)[:80]
    if "@" in str(value):  # a URL, perhaps with its password, in the wrong place
        shown = "a value with @"
    elif isinstance(value, str) and not re.fullmatch(r"[-+.\d]+", value):
        shown = repr(shown)
    return f"{shown} {text}" if text.startswith("is ") else f"{shown}: {text}"


def secrets_of(settings: Settings) -> Iterator[str]:
    """Yield every secret among the settings, in the forms in which it may be met."""
    for name in _KEYS:
        secret = getattr(settings.auth, name)
        if secret is not None:
            yield secret.get_secret_value()
    for url in (settings.database.effective_url, settings.redis.secret_url):
        parts = urlsplit(url or "")
        if parts.password:
            yield parts.password
            yield unquote(parts.password)
        for name, value in parse_qsl(parts.query):
            if re.search("pass|secret|_key", name):
                yield value


def masked(settings: Settings) -> str:
    """Return the effective settings as YAML with what is derived, and without the secrets."""
    data = settings.model_dump(mode="json")
    for name in _KEYS:
        data["auth"][name] = getattr(settings.auth, name) and "********"
    data["database"]["url"] = _masked_url(settings.database.effective_url)
    data["redis"]["url"] = _masked_url(settings.redis.secret_url)
    low, high = settings.database.pool_sizes(settings.server.max_ccu)
    data["capacity"] = asdict(settings.server.capacity) | {
        "max_connections_per_client": settings.server.connections_per_client,
        "pool_min": low,
        "pool_max": high,
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _masked_url(url: str | None) -> str | None:
    # The checks leave no @ but the one after the password, which may be a parameter as well.
    url = re.sub(r"(://[^:@]*):[^@]*@", r"\1:********@", url or "")
    url = re.sub(r"([?&][^=&]*(?:pass|secret|_key|%)[^=&]*=)[^&]*", r"\1********", url)
    return url or None
