"""The catalog: what Gleaner knows, in one database. SQLite by default, PostgreSQL by changing the URL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from curate.catalog.admissions import Admissions
from curate.catalog.columns import Columns
from curate.catalog.database import Database
from curate.catalog.fleet import Fleet
from curate.catalog.ledger import Ledger
from curate.catalog.pool import Pool
from curate.catalog.results import Results


class Catalog(Admissions, Fleet, Pool, Columns, Ledger, Results):
    """Every operation is one transaction; safe between threads and processes.

    Operations raise CatalogError, retryable where the database was unreachable or busy.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect and bring the schema up to date; any number of processes may do so at once.

        `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/database`.
        """
        return cls(Database(url))

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Hold what only one process may do at a time; free again when the block or the holder ends.

        Raises:
            CatalogError: another process holds it (retryable).
        """
        return self._database.exclusive(name)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
