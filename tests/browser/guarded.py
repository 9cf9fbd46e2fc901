"""The workbench of a gateway that asks who calls: real gateway and student service, a student of
made-up regions, and keys of two roles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, select

from services.common.blobs import BlobStore
from services.gateway import students
from services.gateway.access import key_format
from services.gateway.access.identity import role_of
from services.gateway.access.tables import SessionRow
from services.gateway.store import DatasetRow, Store, VersionRow
from tests.gateway.access_world import make_key
from tests.gateway.student_world import make_world, train
from tests.support import free_port, service

STUDENT, PROJECT = "fruit", "default"
ROLES = ("viewer", "tuner")


@dataclass(frozen=True)
class Guarded:
    """A workbench's address, keys by role, and the gateway's database."""

    url: str
    keys: dict[str, str]
    store: Store

    def versions(self) -> list[int]:
        """Return the numbers of the student's versions."""
        with self.store.read() as session:
            return list(session.scalars(select(VersionRow.number).order_by(VersionRow.number)))

    def end_sessions(self) -> None:
        """End every session, as their time would."""
        with self.store.write() as session:
            session.execute(delete(SessionRow))


@contextmanager
def guarded_workbench(folder: Path) -> Iterator[Guarded]:
    """Run both services, train the student, and publish it."""
    store = Store(f"sqlite:///{folder}/gateway.db")
    blobs = BlobStore(str(folder / "blobs"))
    admin, port = folder / "admin.key", free_port()
    admin.write_text(key_format.make(key_format.KEY)[0])
    admin.chmod(0o600)
    keys = {role: make_key(store, PROJECT, role_of(role)) for role in ROLES}
    nobody = f"127.0.0.1:{free_port()}"
    runs = {"STUDENT_RUNS_DIR": str(folder / "runs"), "STUDENT_THREADS": "1"}
    with service("student", folder, **runs) as student:
        # The browser's driver has a loop in this thread.
        with ThreadPoolExecutor(1) as other:
            made, manifest = other.submit(_train, blobs, student.address).result()
        students.publish(store, PROJECT, STUDENT, made)
        _add_dataset(store, manifest)
        asking = {
            "GATEWAY_AUTH": "required",
            "GATEWAY_ADMIN_KEY_FILE": str(admin),
            "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "GATEWAY_HTTP_PORT": str(port),
            "GATEWAY_STUDENT_ADDRESS": student.address,
            "GATEWAY_TEACHER_ADDRESS": nobody,
            "GATEWAY_CONCEPTS_ADDRESS": nobody,
            "GATEWAY_PEER_TIMEOUT_S": "5",
            "GATEWAY_KEY_CACHE_S": "0",
        }
        with service("gateway", folder, **asking):
            try:
                yield Guarded(f"http://127.0.0.1:{port}", keys, store)
            finally:
                store.close()


def _train(blobs: BlobStore, address: str) -> tuple[students.Made, str]:
    world, recipe = make_world(blobs, address)
    return asyncio.run(train(world, recipe)).made, recipe.data.manifest.digest


def _add_dataset(store: Store, manifest: str) -> None:
    row = DatasetRow(project=PROJECT, dataset_id=STUDENT, state="READY", source_json="{}")
    row.manifest_digest = manifest
    with store.write() as session:
        session.add(row)
