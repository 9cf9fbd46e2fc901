"""The blocking client: the async one, run on a loop of its own in a background thread."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from stillhouse.common.v1 import info_pb2

from stillhouse_client.access import AsyncAccess
from stillhouse_client.blobs import AsyncBlobs
from stillhouse_client.certificates import Certificates
from stillhouse_client.client import AsyncClient
from stillhouse_client.datasets import AsyncDatasets
from stillhouse_client.jobs import AsyncJobs
from stillhouse_client.models import AsyncModels
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.projects import AsyncProjects
from stillhouse_client.students import AsyncStudents
from stillhouse_client.transport import DEFAULT_ADDRESS

G = TypeVar("G")
P = ParamSpec("P")
R = TypeVar("R")


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Group(Generic[G]):
    """A group of blocking calls over an async one."""

    def __init__(self, group: G, loop: _Loop) -> None:
        self._group = group
        self._loop = loop


def _blocking(
    method: Callable[Concatenate[G, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Group[G], P], R]:
    @functools.wraps(method)
    def call(self: _Group[G], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._loop.run(method(self._group, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[G, P], AsyncIterator[R]],
) -> Callable[Concatenate[_Group[G], P], Iterator[R]]:
    @functools.wraps(method)
    def call(self: _Group[G], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        items = method(self._group, *args, **kwargs)

        async def step() -> list[R]:
            return [item async for item in _one(items)]

        while found := self._loop.run(step()):
            yield found[0]

    return call


async def _one(items: AsyncIterator[R]) -> AsyncIterator[R]:
    try:
        yield await anext(items)
    except StopAsyncIteration:
        return


class Projects(_Group[AsyncProjects]):
    """What a client can do with projects."""

    create = _blocking(AsyncProjects.create)
    get = _blocking(AsyncProjects.get)
    list = _blocking(AsyncProjects.list)
    update = _blocking(AsyncProjects.update)
    delete = _blocking(AsyncProjects.delete)
    deletion = _blocking(AsyncProjects.deletion)


class Datasets(_Group[AsyncDatasets]):
    """What a client can do with datasets."""

    create = _blocking(AsyncDatasets.create)
    correct = _blocking(AsyncDatasets.correct)
    upload = _blocking(AsyncDatasets.upload)
    get = _blocking(AsyncDatasets.get)
    wait = _blocking(AsyncDatasets.wait)
    list = _blocking(AsyncDatasets.list)
    items = _blocking(AsyncDatasets.items)


class Jobs(_Group[AsyncJobs]):
    """What a client can do with jobs."""

    create = _blocking(AsyncJobs.create)
    estimate = _blocking(AsyncJobs.estimate)
    get = _blocking(AsyncJobs.get)
    list = _blocking(AsyncJobs.list)
    cancel = _blocking(AsyncJobs.cancel)
    wait = _blocking(AsyncJobs.wait)
    samples = _blocking(AsyncJobs.samples)
    review = _blocking(AsyncJobs.review)
    watch = _iterating(AsyncJobs.watch)


class Students(_Group[AsyncStudents]):
    """What a client can do with students."""

    get = _blocking(AsyncStudents.get)
    list = _blocking(AsyncStudents.list)
    version = _blocking(AsyncStudents.version)
    versions = _blocking(AsyncStudents.versions)
    tune = _blocking(AsyncStudents.tune)
    undo = _blocking(AsyncStudents.undo)
    redo = _blocking(AsyncStudents.redo)
    set_head = _blocking(AsyncStudents.set_head)
    rename = _blocking(AsyncStudents.rename)
    events = _blocking(AsyncStudents.events)
    compare = _blocking(AsyncStudents.compare)
    evaluate = _blocking(AsyncStudents.evaluate)
    inspect = _blocking(AsyncStudents.inspect)
    promote = _blocking(AsyncStudents.promote)
    explain = _blocking(AsyncStudents.explain)
    examples = _blocking(AsyncStudents.examples)
    concepts = _blocking(AsyncStudents.concepts)
    export = _blocking(AsyncStudents.export)
    predict = _iterating(AsyncStudents.predict)


class Models(_Group[AsyncModels]):
    """What a client can ask about models."""

    teachers = _blocking(AsyncModels.teachers)
    get = _blocking(AsyncModels.get)
    generate = _iterating(AsyncModels.generate)
    download = _blocking(AsyncModels.download)
    encoders = _blocking(AsyncModels.encoders)
    embed_images = _blocking(AsyncModels.embed_images)
    concept_sets = _blocking(AsyncModels.concept_sets)
    create_concept_set = _blocking(AsyncModels.create_concept_set)


class Blobs(_Group[AsyncBlobs]):
    """Reads blobs by digest."""

    read = _blocking(AsyncBlobs.read)
    save = _blocking(AsyncBlobs.save)


class Access(_Group[AsyncAccess]):
    """Keys, who the caller is, quotas and the audit log."""

    who_am_i = _blocking(AsyncAccess.who_am_i)
    create_key = _blocking(AsyncAccess.create_key)
    keys = _blocking(AsyncAccess.keys)
    revoke_key = _blocking(AsyncAccess.revoke_key)
    audit = _blocking(AsyncAccess.audit)
    quota = _blocking(AsyncAccess.quota)
    set_quota = _blocking(AsyncAccess.set_quota)


class Client:
    """A blocking client of a Stillhouse gateway, with the same groups as AsyncClient."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        project: str = DEFAULT_PROJECT,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        certificates: Certificates | None = None,
        key: str = "",
    ) -> None:
        """Connect lazily to a gateway at `host:port` or `dns:///name:port`; without certificates in
        plain text."""
        self._loop = _Loop()

        async def connect() -> AsyncClient:
            return AsyncClient(
                address,
                project=project,
                timeout_s=timeout_s,
                retry_s=retry_s,
                certificates=certificates,
                key=key,
            )

        self._client = self._loop.run(connect())
        self.projects = Projects(self._client.projects, self._loop)
        self.datasets = Datasets(self._client.datasets, self._loop)
        self.jobs = Jobs(self._client.jobs, self._loop)
        self.students = Students(self._client.students, self._loop)
        self.models = Models(self._client.models, self._loop)
        self.blobs = Blobs(self._client.blobs, self._loop)
        self.access = Access(self._client.access, self._loop)

    def info(self) -> info_pb2.GetInfoResponse:
        """Return the gateway's identity and limits."""
        return self._loop.run(self._client.info())

    def stats(self, *, include_peers: bool = True) -> info_pb2.GetStatsResponse:
        """Return the figures of the gateway and of every service process behind it; two answers
        some seconds apart give rates."""
        return self._loop.run(self._client.stats(include_peers=include_peers))

    def close(self) -> None:
        """Close the connection."""
        self._loop.run(self._client.close())
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
