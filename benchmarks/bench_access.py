"""What it costs a call to be let in: CPU time of the interceptor's work for one small call.

`python benchmarks/bench_access.py`; beside bench_gateway.py, which measures whole calls. Everything
is in one process, and CPU time is counted, so that other programs on the machine matter little.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb
from stillhouse.gateway.v1 import students_pb2

from services.common.blobs import BlobStore
from services.gateway.access import api_keys, gate, rules
from services.gateway.access.authenticator import Authenticator
from services.gateway.access.quotas import Quotas
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store

_CALLS = 20_000
_METHOD = "stillhouse.gateway.v1.StudentsService/GetStudent"


async def measure(folder: Path) -> dict[str, float]:
    """Return microseconds of CPU time a call, by step."""
    settings = GatewaySettings(auth="required", database_url=f"sqlite:///{folder}/gateway.db")
    store = Store(settings.database_url)
    request = pb.CreateApiKeyRequest(project="default", role=access_pb2.ROLE_VIEWER)
    _, secret = api_keys.create(store, request, "benchmark")
    authenticator = Authenticator(settings, store)
    quotas = Quotas(settings, store, BlobStore(str(folder / "blobs")))
    metadata = (("user-agent", "x"), ("authorization", f"Bearer {secret}"), ("te", "trailers"))
    asked = students_pb2.GetStudentRequest(name="projects/default/students/fruit")
    who = await authenticator.identify(dict(metadata))
    rule = rules.rule_of(_METHOD)

    async def credentials() -> Any:
        return await authenticator.identify(dict(metadata))

    async def role() -> Any:
        projects = gate.projects_of(asked)
        gate.check(rule, who, projects, asked)

    async def quota() -> Any:
        await quotas.admit("default", stores=False)

    found = {}
    for step in (credentials, role, quota):
        await step()
        started = time.process_time()
        for _ in range(_CALLS):
            await step()
        found[step.__name__] = (time.process_time() - started) / _CALLS * 1e6
    await authenticator.close()
    store.close()
    return found


def main() -> None:
    """Measure, and print microseconds as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder)))
    print(json.dumps({name: round(us, 2) for name, us in found.items()} | {"unit": "us"}))


if __name__ == "__main__":
    main()
