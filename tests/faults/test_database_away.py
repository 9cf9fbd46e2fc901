"""PostgreSQL dies in the middle of a job and comes back: the job finishes, and callers are told."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pgserver
import pytest
from stillhouse.gateway.v1 import jobs_pb2, jobs_pb2_grpc

from services.common.probe import probe
from services.common.server import LIVE
from tests.e2e.suite import Suite, suite

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
AWAY_S = 10.0


def test_a_job_outlasts_its_database(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    server = pgserver.get_server(folder)
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        with suite(tmp_path / "suite", database_url=url) as running:
            name = running.create(running.prepare(120))
            running.wait_stage(name, "teacher_outputs")
            crash(server)
            said = answer_while_away(running, name)
            time.sleep(AWAY_S)
            server.ensure_postgres_running()
            assert said == grpc.StatusCode.UNAVAILABLE
            assert running.weights_digest(running.finish(name))
    finally:
        server.cleanup()


def crash(server: pgserver.PostgresServer) -> None:
    """End PostgreSQL without a checkpoint and without goodbyes."""
    pgserver.pg_ctl(["-m", "immediate", "stop"], pgdata=server.pgdata, user=server.system_user)


def answer_while_away(running: Suite, name: str) -> grpc.StatusCode:
    """Return what a caller gets; the process lives on, and says that it is not ready."""
    address = running.running["gateway"].address
    with grpc.insecure_channel(address) as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetDistillationJob(jobs_pb2.GetDistillationJobRequest(name=name), timeout=30)
    assert probe(address, service=LIVE) == "SERVING"
    return grpc.StatusCode(caught.value.code())
