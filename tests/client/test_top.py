"""`stillhouse top`: rates of two looks, what is shown, and how it ends."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from stillhouse.common.v1 import info_pb2 as pb
from stillhouse_client.client import AsyncClient
from stillhouse_client.rates import quantile, rates

from tests.client import cli, fake_stats
from tests.client.fake_gateway import World

Capture = pytest.CaptureFixture[str]


def looks() -> tuple[pb.GetStatsResponse, pb.GetStatsResponse]:
    request = pb.GetStatsRequest(include_peers=True)
    return fake_stats.answer(request), fake_stats.answer(request)


def test_rates_are_what_happened_between_two_looks() -> None:
    found = rates(*looks())
    assert found.over_s == 2
    by_service = {one.service: one for one in found.processes}
    teacher = by_service["teacher"]
    assert (teacher.busy, teacher.calls_per_s, teacher.failed_per_s) == (0.75, 9.0, 2.0)
    assert teacher.decode_ms == pytest.approx(3.0)
    assert teacher.encode_ms is None  # nothing was encoded
    assert by_service["gateway"].calls_per_s == 10.0  # what looks after the service is left out
    assert by_service["concepts"].away == "connection refused"
    (model,) = found.models
    assert (model.items_per_s, model.batch_items) == (80.0, 16.0)
    assert model.compute_ms == pytest.approx(150.0)
    assert model.queue_p50_ms == pytest.approx(100.0)
    assert model.queue_p99_ms == pytest.approx(1_000.0)  # over the last bound
    assert (model.refused_per_s, model.dropped_per_s) == (3.0, 1.0)
    (cache,) = found.caches
    assert (cache.lookups_per_s, cache.hit_rate) == (20.0, 0.75)
    assert found.jobs == {"QUEUED": 3, "RUNNING": 2}
    assert found.training == {"active": 1, "waiting": 4}


def test_a_process_that_is_new_has_no_rates_yet() -> None:
    before, after = looks()
    del before.instances[1]
    found = rates(before, after)
    assert next(one for one in found.processes if one.service == "teacher").busy is None
    (model,) = found.models
    assert (model.queue_items, model.items_per_s, model.queue_p99_ms) == (14, None, None)


def test_quantiles_lie_evenly_within_a_bucket() -> None:
    found = pb.Distribution(count=100, bounds=[1.0, 2.0], counts=[50, 100])
    assert quantile(found, 0.25) == pytest.approx(0.5)
    assert quantile(found, 0.75) == pytest.approx(1.5)
    assert quantile(pb.Distribution(bounds=[1.0], counts=[0]), 0.5) is None


async def test_the_client_asks_the_gateway_alone_where_it_shall(gateway: World) -> None:
    async with AsyncClient(gateway.address) as client:
        assert len((await client.stats(include_peers=False)).instances) == 1
        assert len((await client.stats()).instances) == 4


def test_one_view_as_json_and_as_text(capsys: Capture, gateway: World) -> None:
    flags = ("top", "--interval-s", "0.2", "--address", gateway.address)
    shown = cli.run(capsys, *flags, "--json").json
    assert [one["service"] for one in shown["processes"]] == [
        "gateway",
        "teacher",
        "student",
        "concepts",
    ]
    assert shown["models"][0]["items_per_s"] == 80.0
    assert shown["running_jobs"] == []
    text = cli.run(capsys, *flags).out
    for part in (
        "lite0",
        "75%",
        "connection refused",
        "3 queued, 2 running",
        "1 active, 4 waiting",
    ):
        assert part in text


def test_without_a_gateway_it_says_so(capsys: Capture) -> None:
    found = cli.run(capsys, "top", "--address", "127.0.0.1:1", "--interval-s", "0.2")
    assert found.code == 4
    assert "no answer from 127.0.0.1:1" in found.err
    assert "Traceback" not in found.err


def test_ctrl_c_ends_it_and_gives_the_terminal_back(gateway: World) -> None:
    main, other = pty.openpty()
    # Tests that run in the background have Ctrl-C switched off, which children inherit.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stillhouse_client.cli import main; import sys; main(sys.argv[1:])"
    )
    flags = ["top", "--interval-s", "0.2", "--address", gateway.address]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"},
        start_new_session=True,
    )
    os.close(other)
    try:
        shown = _read_until(main, b"lite0")
        process.send_signal(signal.SIGINT)
        shown += _read_until(main, b"")
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert b"\x1b[?1049h" in shown  # the other screen
    assert b"\x1b[?1049l" in shown  # and back
    assert b"Traceback" not in shown
    assert b"Aborted" not in shown


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read what a terminal shows until something is there; to the end for nothing."""
    shown, until_s = b"", time.monotonic() + 30
    while time.monotonic() < until_s and (not wanted or wanted not in shown):
        if select.select([descriptor], [], [], 0.2)[0]:
            try:
                part = os.read(descriptor, 65_536)
            except OSError:  # the other side is closed
                return shown
            if not part:
                return shown
            shown += part
    assert not wanted or wanted in shown, shown
    return shown
