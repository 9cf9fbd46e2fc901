"""The fence of a job: one run of its story at a time may write to the job's row and events.

A gateway that stood still is taken for dead, and another one runs its jobs. When it goes on, its
runs are old: the engine refuses what they record, and the rows refuse what they say. Blobs need no
fence, because a name's bytes follow from the name, whoever writes them.
"""

from __future__ import annotations

from dbos._context import get_local_dbos_context
from dbos._dbos import _get_dbos_instance
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from services.gateway.outages import DatabaseAway


class Superseded(BaseException):
    """Another run of the same job has begun; this one must stop without a trace.

    Not an Exception: nothing that handles a stage's failure may take it for one.
    """


def claim(workflow_id: str) -> int:
    """Return the number of this run among all of its workflow, from 1. Blocking; call it in the
    workflow. Raises Superseded where another one has begun, DatabaseAway."""
    context = get_local_dbos_context()
    database = _get_dbos_instance()._sys_db
    status = database.tables.workflow_status.c
    query = select(status.owner_xid, status.recovery_attempts)
    query = query.where(status.workflow_uuid == workflow_id)
    try:
        with database.engine.connect() as connection:
            found = connection.execute(query).one_or_none()
    except DBAPIError as error:  # the engine's own pool: nothing else can be wrong with it
        raise DatabaseAway("the engine's database is away; try again") from error
    if found is None or context is None or found.owner_xid != context.owner_xid:
        raise Superseded(workflow_id)
    return int(found.recovery_attempts)
