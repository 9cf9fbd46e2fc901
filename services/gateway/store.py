"""The gateway's tables: datasets, students with their versions and events, jobs, and answered
requests.

SQLite (one file, write-ahead log) on one host, PostgreSQL by URL for several gateways. Rows are
small: images,
manifests, weights and reports lie in the blob store and are named here by digest. Calls block, so
servicers run
them by `asyncio.to_thread`. Rows read in a transaction stay readable after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    Row,
    Select,
    String,
    Text,
    UniqueConstraint,
    bindparam,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateColumn

from services.common.errors import InvalidInput
from services.gateway import outages

R = TypeVar("R")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BUSY_S = 30
_ATTEMPTS = 3
_PK = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Base of the tables. Times are seconds since 1970 (UTC); `*_json` columns hold JSON text."""


class DatasetRow(Base):
    """A dataset; `result_json` is the `Dataset` message's output (classes, counts, rejected
    items)."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("project", "dataset_id"),)

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    project: Mapped[str] = mapped_column(String(63), index=True)
    dataset_id: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16))
    """CREATING, READY or FAILED."""
    source_json: Mapped[str] = mapped_column(Text)
    item_count: Mapped[int] = mapped_column(default=0)
    manifest_digest: Mapped[str] = mapped_column(String(64), default="")
    result_json: Mapped[str] = mapped_column(Text, default="{}")
    created: Mapped[float] = mapped_column(Double, default=time.time)


class StudentRow(Base):
    """A student: `head` is the version that edits apply to, `promoted` the one that Predict
    serves."""

    __tablename__ = "students"
    __table_args__ = (UniqueConstraint("project", "student_id"),)

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    project: Mapped[str] = mapped_column(String(63), index=True)
    student_id: Mapped[str] = mapped_column(String(63))
    head: Mapped[int]
    promoted: Mapped[int]
    previous: Mapped[int] = mapped_column(default=0)
    """Version that was promoted before; 0 where there was none."""
    dataset: Mapped[str] = mapped_column(Text)
    teacher: Mapped[str] = mapped_column(Text)
    encoder: Mapped[str] = mapped_column(Text)
    classes_json: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Double, default=time.time)


class VersionRow(Base):
    """One immutable version. `parent` is 0 for a job's; `job` is empty for a tuned one."""

    __tablename__ = "student_versions"

    student_pk: Mapped[int] = mapped_column(ForeignKey("students.pk"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    parent: Mapped[int] = mapped_column(default=0)
    job: Mapped[str] = mapped_column(Text, default="", index=True)
    weights_digest: Mapped[str] = mapped_column(String(64))
    card_digest: Mapped[str] = mapped_column(String(64))
    report_digest: Mapped[str] = mapped_column(String(64), default="")
    effects_json: Mapped[str] = mapped_column(Text, default="[]")
    changes_json: Mapped[str] = mapped_column(Text, default="[]")
    created: Mapped[float] = mapped_column(Double, default=time.time)
    display_name: Mapped[str] = mapped_column(String(100), default="", server_default="")


class StudentEventRow(Base):
    """Something that was done to a student; `sequence` counts from 1 without gaps."""

    __tablename__ = "student_events"

    student_pk: Mapped[int] = mapped_column(ForeignKey("students.pk"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    description: Mapped[str] = mapped_column(Text)
    effects_json: Mapped[str] = mapped_column(Text, default="[]")
    changes_json: Mapped[str] = mapped_column(Text, default="[]")
    created: Mapped[float] = mapped_column(Double, default=time.time)


class JobRow(Base):
    """A distillation job as its callers see it; the workflow engine keeps its own tables."""

    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("project", "job_id"),)

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    project: Mapped[str] = mapped_column(String(63), index=True)
    job_id: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16))
    """QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLING or CANCELLED."""
    spec_json: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(String(128), default="")
    created: Mapped[float] = mapped_column(Double, default=time.time)
    ended: Mapped[float | None] = mapped_column(Double, default=None)
    error: Mapped[str] = mapped_column(Text, default="")
    result_json: Mapped[str] = mapped_column(Text, default="{}")
    run: Mapped[int] = mapped_column(default=0, server_default="0")
    """Number of the run of the story that may write; older ones must not."""


class JobEventRow(Base):
    """One event of a job; `seq` counts from 1 without gaps and is the resume token."""

    __tablename__ = "job_events"

    job_pk: Mapped[int] = mapped_column(ForeignKey("jobs.pk"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float] = mapped_column(Double, default=time.time)
    payload_json: Mapped[str] = mapped_column(Text)


class RequestRow(Base):
    """The answer of a mutating call, so that a repeated call gets the same one."""

    __tablename__ = "request_ids"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    request_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    method: Mapped[str] = mapped_column(String(64))
    body_digest: Mapped[str] = mapped_column(String(64))
    response: Mapped[bytes] = mapped_column(LargeBinary)
    created: Mapped[float] = mapped_column(Double, default=time.time)


class Store:
    """The tables in one database. Thread-safe; blocking.

    `url` is a SQLAlchemy URL: `sqlite:///path` or `postgresql+psycopg://...`. Missing tables are
    made, and so are columns that an older release did not have.
    """

    def __init__(self, url: str) -> None:
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        self._engine = _engine(url)
        self._writing = self._engine.execution_options(writing=True)
        # SQLite has one writer, and those who wait for it sleep ever longer between two looks. A
        # lock before it wakes the next one at once.
        self._turn = threading.Lock() if self._sqlite else contextlib.nullcontext()
        with self._writing.begin() as connection:
            if not self._sqlite:  # two gateways that start at once would both create the tables
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7100)")
            Base.metadata.create_all(connection)
            _add_columns(connection)

    @property
    def is_shared(self) -> bool:
        """Whether other gateways may write to the same tables."""
        return not self._sqlite

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads one consistent state."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def fetch_many(
        self, statement: Select[Any], keys: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Row[Any]]:
        """Return rows by (project, id), each project's as one moment had them.

        `statement` is made once, selects columns, the id's labelled `id`, and binds `project` and
        `ids`. Rows have the columns as attributes and cannot be changed; they take a third of the
        time of a session's objects. Ids go by project because SQLite uses no index for pairs.
        """
        by_project: dict[str, list[str]] = {}
        for project, one in keys:
            by_project.setdefault(project, []).append(one)
        found: dict[tuple[str, str], Row[Any]] = {}
        with self._engine.connect() as connection:
            for project, ids in by_project.items():
                rows = connection.execute(statement, {"project": project, "ids": ids})
                found |= {(project, row.id): row for row in rows}
        return found

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at its end, or rolls back where the block raises.

        SQLite takes its write lock at the start, so that two writers wait instead of failing; on
        PostgreSQL
        lock the row that a decision rests on by `with_for_update()`.
        """
        with (
            self._turn,
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def change(self, work: Callable[[Session], R]) -> R:
        """Run `work` in a writing transaction, again where another writer was first.

        On PostgreSQL two transactions can insert the same key; the second then starts over and
        finds what the first one wrote. `work` must do nothing but use the session.
        """
        for _ in range(_ATTEMPTS):
            try:
                with self.write() as session:
                    return work(session)
            except IntegrityError:
                continue
        with self.write() as session:
            return work(session)

    @contextlib.contextmanager
    def alone(self, number: int) -> Iterator[bool]:
        """Yield whether this process alone does something now: on PostgreSQL it holds an advisory
        lock meanwhile, which the server takes back from who dies. SQLite has one gateway anyway."""
        if self._sqlite:
            yield True
            return
        with self._engine.connect() as connection:
            got = bool(connection.execute(select(func.pg_try_advisory_lock(number))).scalar())
            connection.commit()  # a session's lock outlasts the transaction, which would wait idle
            try:
                yield got
            finally:
                if got:
                    connection.execute(select(func.pg_advisory_unlock(number)))
                    connection.commit()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def by_name(
    row: type[Base], id_column: InstrumentedAttribute[str], *more: Any
) -> Select[tuple[Any, ...]]:
    """Return a statement for `Store.fetch_many`: all columns of a table with a project and an id,
    and `more` columns."""
    table = row.__table__
    return select(*table.columns, id_column.label("id"), *more).where(
        table.c.project == bindparam("project"), id_column.in_(bindparam("ids", expanding=True))
    )


def answered(
    session: Session, project: str, request_id: str, method: str, body: bytes
) -> bytes | None:
    """Return the stored answer of an earlier call with this `request_id`, None where there is none.

    Raises InvalidInput where the id was used for another method or another body, or is malformed.
    """
    if not request_id:
        return None
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidInput(
            "request_id: use 1 to 128 letters, digits, '.', '_' or '-'; a UUID is best",
            field="request_id",
        )
    _wait_for_twin(session, f"{project}/{request_id}")
    row = session.get(RequestRow, (project, request_id))
    if row is None:
        return None
    if (row.method, row.body_digest) != (method, hashlib.sha256(body).hexdigest()):
        raise InvalidInput(
            f"request_id {request_id} was used for another request ({row.method}); "
            "take a new one for a new request",
            field="request_id",
        )
    return row.response


def record(
    session: Session, project: str, request_id: str, method: str, body: bytes, response: bytes
) -> None:
    """Store a call's answer in the transaction that does its work; an empty `request_id` stores
    nothing."""
    if request_id:
        session.add(
            RequestRow(
                project=project,
                request_id=request_id,
                method=method,
                body_digest=hashlib.sha256(body).hexdigest(),
                response=response,
            )
        )


def _add_columns(connection: Connection) -> None:
    """Add the columns that a database of an older release lacks; each has a default there."""
    there = inspect(connection)
    for table in Base.metadata.sorted_tables:
        known = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                made = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {made}")


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        shared = create_engine(parsed, pool_pre_ping=True, pool_size=5, max_overflow=10)
        outages.watch(shared)
        return shared
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Write-ahead log, and our own BEGIN: the driver's late one makes two writers fail each
    other."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _wait_for_twin(session: Session, key: str) -> None:
    """Let a call that carries the same request_id end first; SQLite has one writer anyway.

    Without it the twin's rows can appear between two queries of ours, on PostgreSQL.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))
