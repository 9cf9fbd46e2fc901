"""A database that is away for a while, as in a restart or a failover: callers are told to try
again, and jobs wait for it.

Every statement of ours runs in a transaction, and stages of jobs look at what exists before they
work, so whatever was cut off is simply done again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg import errors
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from services.common import logs
from services.common.errors import PeerUnavailable

R = TypeVar("R")
_PAUSE_S = 1.0
_STATES = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow)
_log = logs.get(__name__)


class DatabaseAway(PeerUnavailable):
    """The database cannot be reached, or ended the connection."""


def watch(engine: Engine) -> None:
    """Let an engine raise DatabaseAway where its database is away, whoever uses it."""
    event.listen(engine, "handle_error", _translate)


async def outlast(attempt: Callable[[], Awaitable[R]], *, give_up_s: float, what: str) -> R:
    """Run `attempt` again until the database is there, for `give_up_s` at most.

    Raises what `attempt` raises; DatabaseAway only after that time.
    """
    until_s = time.monotonic() + give_up_s
    while True:
        try:
            return await attempt()
        except DatabaseAway:
            if time.monotonic() + _PAUSE_S > until_s:
                raise
            _log.warning("waiting for the database", what=what)
            await asyncio.sleep(_PAUSE_S)


def _translate(context: ExceptionContext) -> None:
    error = context.original_exception
    # Before there is a connection, any operational error means that there will be none.
    unconnected = context.connection is None and isinstance(error, errors.OperationalError)
    if context.is_disconnect or unconnected or isinstance(error, _STATES):
        said = "the gateway's database is away; try again"
        raise DatabaseAway(said, retry_after_s=_PAUSE_S) from error
