"""What the database names: rows of datasets, students, jobs, and what unfinished jobs recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, String, Table, create_engine, inspect, make_url, select, text
from sqlalchemy.orm import Session

from services.common import names
from services.gateway.jobs import heartbeat, reviews  # noqa: F401  they have tables too
from services.gateway.jobs.engine import system_database_url
from services.gateway.jobs.records import FINAL
from services.gateway.keeping.digests import digests_in
from services.gateway.keeping.rules import (
    CARD,
    MANIFEST,
    OTHER_COLUMNS,
    RESULT,
    TABLES,
    Need,
    Rules,
    need_of,
    need_of_step,
)
from services.gateway.store import Base, DatasetRow, JobRow, Store, StudentRow, VersionRow


@dataclass(frozen=True)
class Root:
    """A blob that a row or a ref names. `owner` is a resource's name, or `refs/...` of a ref."""

    project: str
    digest: str
    owner: str
    path: str
    need: Need
    rules: Rules | None
    """What the blob itself can name; None where it is no JSON."""


@dataclass(frozen=True)
class Rows:
    """One look at the database."""

    roots: list[Root]
    unfinished: dict[str, float]
    """By project, when the oldest job or ingest began that is not over."""
    projects: set[str]


def read_rows(store: Store, database_url: str) -> Rows:
    """Return all that rows name. Blocking."""
    with store.read() as session:
        roots = [*_datasets(session), *_versions(session), *_jobs(session), *_others(session)]
        unfinished = _unfinished(session)
        running = {
            f"{row.project}.{row.job_id}": row
            for row in session.scalars(select(JobRow).where(JobRow.state.not_in(FINAL)))
        }
        projects = set(session.scalars(select(DatasetRow.project).distinct()))
        projects |= set(session.scalars(select(JobRow.project).distinct()))
    roots += _steps(database_url, running)
    return Rows(roots, unfinished, projects | {root.project for root in roots})


def _datasets(session: Session) -> Iterator[Root]:
    for row in session.scalars(select(DatasetRow)):
        name = names.join(row.project, "datasets", row.dataset_id)
        if row.manifest_digest:
            digest = row.manifest_digest
            yield Root(row.project, digest, name, "manifest", Need.TRUTH, MANIFEST)
        need = Need.TRUTH if row.state == "CREATING" else Need.LOOSE
        for path, digest in digests_in(row.source_json):
            yield Root(row.project, digest, name, ".".join(path), need, None)
        yield from _loose(row.project, name, row.result_json)


def _versions(session: Session) -> Iterator[Root]:
    query = select(VersionRow, StudentRow).join(StudentRow, StudentRow.pk == VersionRow.student_pk)
    for row, student in session.execute(query):
        where = (student.project, "students", student.student_id, "versions", str(row.number))
        name = names.join(*where)
        for digest, path, rules in (
            (row.weights_digest, "weights", None),
            (row.card_digest, "card", CARD),
            (row.report_digest, "report", Rules()),
        ):
            if digest:
                yield Root(student.project, digest, name, path, Need.TRUTH, rules)
        for loose in (row.effects_json, row.changes_json):
            yield from _loose(student.project, name, loose)


def _jobs(session: Session) -> Iterator[Root]:
    for row in session.scalars(select(JobRow)):
        name = names.join(row.project, "distillationJobs", row.job_id)
        for path, digest in digests_in(row.result_json):
            need = need_of(RESULT, path) or Need.LOOSE
            yield Root(row.project, digest, name, ".".join(path), need, Rules())
        for loose in (row.spec_json, row.error):
            yield from _loose(row.project, name, loose)


def _others(session: Session) -> Iterator[Root]:
    """Whatever a table that no rule knows yet says beside its project is taken as a name."""
    for table in Base.metadata.sorted_tables:
        if table.name in TABLES or "project" not in table.columns:
            continue
        columns = [column for column in text_columns(table) if column != "project"]
        for row in session.execute(select(table)).mappings():
            for column in columns:
                where = f"{table.name}.{column}"
                if where not in OTHER_COLUMNS:
                    yield from _loose(str(row["project"]), where, str(row[column] or ""))


def text_columns(table: Table) -> list[str]:
    """Return the columns of a table that can hold a digest."""
    return [column.name for column in table.columns if isinstance(column.type, String)]


def _loose(project: str, owner: str, data: str) -> Iterator[Root]:
    for path, digest in digests_in(data):
        yield Root(project, digest, owner, ".".join(path), Need.LOOSE, Rules())


def _unfinished(session: Session) -> dict[str, float]:
    jobs = select(JobRow.project, JobRow.created).where(JobRow.state.not_in(FINAL))
    ingests = select(DatasetRow.project, DatasetRow.created).where(DatasetRow.state == "CREATING")
    found: dict[str, float] = {}
    for query in (jobs, ingests):
        for project, created in session.execute(query):
            found[project] = min(found.get(project, created), created)
    return found


def _steps(database_url: str, running: dict[str, JobRow]) -> Iterator[Root]:
    """What the stages of unfinished jobs recorded, in the workflow engine's own tables."""
    engine = workflow_engine(database_url)
    if engine is None:
        return
    try:
        yield from _recorded(engine, running)
    finally:
        engine.dispose()


def _recorded(engine: Engine, running: dict[str, JobRow]) -> Iterator[Root]:
    schema = None if engine.dialect.name == "sqlite" else "dbos"
    if not inspect(engine).has_table("operation_outputs", schema=schema):
        return
    table = "operation_outputs" if schema is None else f"{schema}.operation_outputs"
    query = text(f"SELECT workflow_uuid, output FROM {table} WHERE output IS NOT NULL")
    with engine.connect() as connection:
        for workflow, output in connection.execute(query):
            row = running.get(str(workflow))
            if row is None:
                continue
            owner = names.join(row.project, "distillationJobs", row.job_id)
            for path, digest in digests_in(_text(output)):
                need = need_of_step(path)
                rules = MANIFEST if path and path[-1] == "manifest" else Rules()
                yield Root(row.project, digest, owner, ".".join(path), need, rules)


def workflow_engine(database_url: str) -> Engine | None:
    """Return an engine on the workflow engine's tables; None where it has no file yet."""
    url = make_url(system_database_url(database_url))
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return None
    return create_engine(url)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
