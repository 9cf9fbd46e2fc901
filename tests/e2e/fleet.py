"""A suite whose teachers and concepts services are several processes behind one list of addresses.

Each has a number; number 0 is the one that a plain suite has. How much work each did is what its
own metrics page says.
"""

from __future__ import annotations

import contextlib
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from stillhouse.gateway.v1 import jobs_pb2

from services.common.shards import SHARD_ITEMS
from tests.e2e.suite import Suite
from tests.support import Service, free_port, start_service, wait_ready

INFERRING = ("teacher", "concepts")
"""The services that have several instances."""
_LIVE = (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)


@dataclass
class Fleet(Suite):
    """The processes of one suite, with up to three instances of each service that infers."""

    addresses: dict[str, list[int]] = field(
        default_factory=lambda: {name: [free_port() for _ in range(3)] for name in INFERRING}
    )
    metrics: dict[str, list[int]] = field(
        default_factory=lambda: {name: [free_port() for _ in range(3)] for name in INFERRING}
    )
    instances: dict[tuple[str, int], Service] = field(default_factory=dict)

    def environment(self, name: str) -> dict[str, str]:
        """The suite's, with lists of addresses and room in flight for two shards an instance."""
        found = super().environment(name)
        if name == "gateway":
            for service, ports in self.addresses.items():
                listed = ",".join(f"127.0.0.1:{port}" for port in ports)
                found[f"GATEWAY_{service.upper()}_ADDRESS"] = listed
            found["GATEWAY_SHARDS_IN_FLIGHT"] = "4"
        return found

    def launch(self, name: str, number: int, **more: str) -> None:
        """Start an instance and return at once."""
        prefix = name.upper()
        environment = self.environment(name) | more
        environment[f"{prefix}_METRICS_PORT"] = str(self.metrics[name][number])
        port = self.addresses[name][number]
        folder = self.folder / f"{name}-{number}"
        environment[f"{prefix}_BLOB_URL"] = str(self.folder / "blobs")
        environment["TEACHER_REMEMBERED_ROWS"] = "0"  # a job's shards are work each time
        self.instances[name, number] = start_service(name, folder, port, **environment)

    def ready(self, name: str, number: int) -> None:
        """Wait until an instance is ready."""
        service = self.instances[name, number]
        wait_ready(service.address, process=service.process)

    def end(self, name: str, number: int, how: signal.Signals) -> None:
        """Send an instance a signal and wait for its end."""
        process = self.instances[name, number].process
        process.send_signal(how)
        process.wait(60)

    def images(self, name: str, number: int) -> int:
        """Return how many images an instance has put through a model."""
        page = f"http://127.0.0.1:{self.metrics[name][number]}/metrics"
        text = urllib.request.urlopen(page, timeout=10).read().decode()
        return sum(
            int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "stillhouse_batch_items_sum"
            and not sample.labels["model"].endswith(" texts")
        )

    def until_busy(self, job: str, name: str, number: int, *, timeout_s: float = 300) -> bool:
        """Wait until an instance has computed a whole shard; return whether the job still goes
        on."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            state = self.job(job).state
            assert state in (*_LIVE, jobs_pb2.JOB_STATE_SUCCEEDED), self.job(job)
            if state not in _LIVE:
                return False
            with contextlib.suppress(urllib.error.URLError):  # it is still starting
                if self.images(name, number) >= SHARD_ITEMS:
                    return True
            time.sleep(0.05)
        raise RuntimeError(f"{name} {number} computed nothing in {timeout_s} s")

    def stop(self) -> None:
        """Stop everything."""
        super().stop()
        for service in self.instances.values():
            service.kill()


@contextmanager
def fleet(folder: Path, *, instances: int) -> Iterator[Fleet]:
    """Run a suite with so many teachers and concepts services until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Fleet(folder, threads=1)
    try:
        running.start_redis()
        for name in INFERRING:
            for number in range(instances):
                running.launch(name, number)
        for name in ("student", "gateway"):
            running.start(name)
        for name, number in list(running.instances):
            running.ready(name, number)
        for name in ("student", "gateway"):
            running.wait(name)
        yield running
    finally:
        running.stop()
