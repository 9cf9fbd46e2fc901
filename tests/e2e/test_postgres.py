"""The same job with its state in PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pgserver
import pytest

from tests.e2e.suite import suite

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_job_runs_on_postgresql(tmp_path: Path) -> None:
    server = pgserver.get_server(tmp_path / "pg")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        with suite(tmp_path / "suite", database_url=url) as running:
            job = running.finish(running.create(running.prepare()))
            assert running.weights_digest(job)
    finally:
        server.cleanup()
