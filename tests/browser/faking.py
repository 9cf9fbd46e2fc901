"""The real page and HTTP edge before a gateway with fixed answers: real jobs would take long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.gateway.http.edge import Edge
from services.gateway.settings import GatewaySettings
from tests.client import fake_gateway
from tests.client.fake_gateway import World


@contextmanager
def workbench(jobs_of: Callable[[World], fake_gateway.Jobs]) -> Iterator[tuple[str, World]]:
    """Yield the workbench's address, and what its gateway was asked; `jobs_of` answers for jobs."""
    with fake_gateway.serve(jobs_of) as world:
        loop, started, stopping = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
        edge = Edge(GatewaySettings(http_port=0))

        async def run() -> None:
            host, _, port = world.address.rpartition(":")
            edge.bound(host, int(port))
            await edge.start()
            started.set()
            await stopping.wait()
            await edge.stop()

        thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
        thread.start()
        assert started.wait(30)
        try:
            yield f"http://127.0.0.1:{edge.port}", world
        finally:
            loop.call_soon_threadsafe(stopping.set)
            thread.join()
            loop.close()
