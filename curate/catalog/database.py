"""One database, one writer at a time: the transactions every catalog operation runs in, on SQLite and PostgreSQL."""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from curate.errors import CatalogError

LOCK_TIMEOUT_S = 60.0
MAX_IDS_PER_QUERY = 10_000
"""Below the 32,766 variables of SQLite and the 65,535 of PostgreSQL."""
_ADVISORY_LOCK = 0x476C65616E6572
_WRITE = "gleaner_write"

T = TypeVar("T")


class Database:
    """A migrated database. Safe between threads and processes; it survives `kill -9` at any moment.

    Writers queue: on SQLite behind a lock file (SQLite before 3.51.3 can damage a WAL that two connections
    write or checkpoint at the same instant, and its own waiting is not fair), on PostgreSQL behind an advisory lock.
    The kernel or the server frees both when their holder dies.
    """

    def __init__(self, url: str) -> None:
        """Connect and bring the schema to head.

        Raises:
            CatalogError: the URL is not one of ours, or the database cannot be reached (then retryable).
        """
        parsed = _parse_url(url)
        self._lock_path = _prepare_sqlite(parsed) if parsed.get_backend_name() == "sqlite" else None
        self._engine = _build_engine(parsed)
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of the catalog."""
        with _translated(), self._engine.connect() as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """All or nothing, one writer at a time; durable when the block has ended."""
        with _translated(), self._writer_lock(), self._engine.connect() as plain:
            connection = plain.execution_options(**{_WRITE: True})
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                yield connection

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold what only one process may do at a time; freed by the kernel or the server when the holder dies.

        Raises:
            CatalogError: another process holds it (retryable).
        """
        busy = CatalogError(f"another process is at it: {name}", retryable=True)
        if self._lock_path is not None:
            with self._lock_path.with_suffix(f".{name}.lock").open("ab") as file:
                if not _try_lock(file.fileno()):
                    raise busy
                yield
            return
        with _translated(), self._engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            key = {"key": zlib.crc32(name.encode())}
            if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar_one():
                raise busy
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        try:
            with self.write() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as exc:
            raise CatalogError(
                f"the catalog's schema cannot be brought up to date: {exc}",
                hint="was it written by a newer version of Gleaner?",
            ) from exc

    @contextmanager
    def _writer_lock(self) -> Iterator[None]:
        if self._lock_path is None:
            yield
            return
        with self._lock_path.open("ab") as file:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise CatalogError(f"another process has been writing for {LOCK_TIMEOUT_S:.0f} s", retryable=True)
                time.sleep(0.002)
            yield


def insert_or_skip(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows; one that collides with a unique constraint changes nothing."""
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), list(rows))


def insert_all(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows, of which there may be none; a collision undoes the transaction."""
    if rows:
        connection.execute(table.insert(), list(rows))


def chunks(values: Iterable[T], size: int = MAX_IDS_PER_QUERY) -> Iterator[list[T]]:
    """Cut into lists no query is too small for."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse_url(url: str) -> URL:
    hint = "use sqlite:///path/to/catalog.db or postgresql://user@host/database"
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise CatalogError("the catalog's URL cannot be read", hint=hint) from exc
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise CatalogError(f"not a catalog URL: {parsed.render_as_string()}", hint=hint)


def _prepare_sqlite(url: URL) -> Path:
    path = Path(url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CatalogError(f"cannot make the catalog's folder {path.parent}: {exc.strerror}") from exc
    return path.with_name(path.name + ".lock")


def _build_engine(url: URL) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        json_serializer=_to_json,
        connect_args={"timeout": LOCK_TIMEOUT_S} if is_sqlite else {"connect_timeout": 10},
        pool_pre_ping=not is_sqlite,
    )
    if is_sqlite:
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, DDL included
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # a device deletes what we acknowledge, so a commit must survive a power cut
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class EncodedJson(str):
    """A JSON value that is text already, with numbers that JSON knows: it is stored as it stands."""

    __slots__ = ()


def _to_json(value: Any) -> str:
    if isinstance(value, EncodedJson):
        return value
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number nobody knows is stored as null, alike on both databases."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as exc:
        raise CatalogError(f"the catalog's database failed: {exc.orig}", retryable=True) from exc
    except DBAPIError as exc:
        retryable = exc.connection_invalidated
        raise CatalogError(f"the catalog refused: {exc.orig}", retryable=retryable) from exc
    except SQLAlchemyError as exc:
        raise CatalogError(f"the catalog refused: {exc}") from exc
    except OSError as exc:
        raise CatalogError(f"the catalog's files cannot be used: {exc}") from exc
