"""A copy of the tables in PostgreSQL: all of one moment, by COPY in one snapshot.

It needs neither pg_dump nor a right beyond those of the gateway's own user, and it is the same on
every release of the server. `pg_dump` of the database does as well; it is restored by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from dbos import DBOS
from psycopg import sql
from sqlalchemy import MetaData, create_engine, make_url

from services.common.errors import Precondition
from services.gateway.store import Store

INDEX = "tables.json"
_SCHEMAS = ("public", "dbos")
_MIGRATIONS = "dbos_migrations"
_CHUNK_BYTES = 1 << 20


def snapshot(database_url: str, folder: Path) -> list[str]:
    """Write a file for each table, and an index of them; return their names."""
    index: dict[str, list[str]] = {}
    with _connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        for schema, table in _tables(connection):
            columns = [name for name, _ in _columns(connection, schema, table)]
            name = f"{schema}.{table}.copy"
            index[name] = columns
            with (folder / name).open("wb") as file, connection.cursor() as cursor:
                command = _command("COPY {table} ({columns}) TO STDOUT", schema, table, columns)
                with cursor.copy(command) as copy:
                    for chunk in copy:
                        file.write(chunk)
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
    return [INDEX, *index]


def is_empty(database_url: str, *, resuming: bool = False) -> bool:
    """Return whether no table of ours, or of the workflow engine, holds a row."""
    with _connect(database_url) as connection:
        return _is_empty(connection)


def _is_empty(connection: psycopg.Connection[Any]) -> bool:
    for schema, table in _tables(connection):
        query = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(schema, table))
        if connection.execute(query).fetchone():
            return False
    return True


def put_in_place(database_url: str, folder: Path, after: Mapping[str, str]) -> None:
    """Make the tables as this release has them, fill them and do `after`, in one transaction.

    Raises Precondition where somebody has written there meanwhile; while it looks and fills nobody
    can.
    """
    index: dict[str, list[str]] = json.loads((folder / INDEX).read_text())
    Store(database_url).close()
    DBOS.migrate(database_url)
    order = list(_in_order(database_url))
    unknown = set(index) - {f"{schema}.{table}.copy" for schema, table in order}
    if unknown:
        raise Precondition(
            f"this release has no table {min(unknown)}: the backup is of a newer one"
        )
    with _connect(database_url) as connection:
        tables = sql.SQL(", ").join(sql.Identifier(*one) for one in order)
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables))
        if not _is_empty(connection):
            raise Precondition("the database was written to meanwhile; it needs an empty place")
        for schema, table in order:
            name = f"{schema}.{table}.copy"
            if name in index:
                _fill(connection, schema, table, index[name], folder / name)
        for statement in after.values():
            connection.execute(statement.encode())


def _fill(
    connection: psycopg.Connection[Any], schema: str, table: str, columns: list[str], path: Path
) -> None:
    command = _command("COPY {table} ({columns}) FROM STDIN", schema, table, columns)
    with path.open("rb") as file, connection.cursor() as cursor, cursor.copy(command) as copy:
        while chunk := file.read(_CHUNK_BYTES):
            copy.write(chunk)
    for column, is_counted in _columns(connection, schema, table):
        if is_counted:
            last = sql.SQL(
                "SELECT setval(pg_get_serial_sequence({name}, {column}), "
                "(SELECT COALESCE(MAX({field}), 0) + 1 FROM {table}), false)"
            ).format(
                name=f"{schema}.{table}",
                column=column,
                field=sql.Identifier(column),
                table=sql.Identifier(schema, table),
            )
            connection.execute(last)


def _command(template: Any, schema: str, table: str, columns: list[str]) -> sql.Composed:
    return sql.SQL(template).format(
        table=sql.Identifier(schema, table),
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
    )


def _tables(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    found = connection.execute(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_type = 'BASE TABLE' AND table_schema = ANY(%s) AND table_name <> %s "
        "ORDER BY 1, 2",
        (list(_SCHEMAS), _MIGRATIONS),
    )
    return [(str(schema), str(table)) for schema, table in found]


def _columns(
    connection: psycopg.Connection[Any], schema: str, table: str
) -> list[tuple[str, bool]]:
    """Return the stored columns, and whether a sequence counts them."""
    found = connection.execute(
        "SELECT column_name, is_identity = 'YES' OR COALESCE(column_default, '') LIKE 'nextval%%' "
        "FROM information_schema.columns WHERE table_schema = %s AND table_name = %s "
        "AND is_generated = 'NEVER' ORDER BY ordinal_position",
        (schema, table),
    )
    return [(str(name), bool(is_counted)) for name, is_counted in found]


def _in_order(database_url: str) -> Iterator[tuple[str, str]]:
    """Yield all tables, those that others refer to first."""
    engine = create_engine(database_url)
    try:
        for schema in _SCHEMAS:
            metadata = MetaData(schema=schema)
            metadata.reflect(engine, resolve_fks=False)
            for table in metadata.sorted_tables:
                if table.name != _MIGRATIONS:
                    yield schema, table.name
    finally:
        engine.dispose()


def _connect(database_url: str) -> psycopg.Connection[Any]:
    url = make_url(database_url).set(drivername="postgresql")
    return psycopg.connect(url.render_as_string(hide_password=False))
