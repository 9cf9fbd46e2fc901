"""What a suite consists of where services have several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse_client.suite import config as configs
from stillhouse_client.suite.config import SuiteConfig

TWO = {"teacher": 2, "concepts": 3}


def environment(process: str, processes: dict[str, int], tmp_path: Path) -> dict[str, str]:
    config = SuiteConfig(tmp_path, processes=processes)
    ports = {name: 1000 + at for at, name in enumerate(config.members())}
    return configs.environment(config, process, {configs.HTTP: 1, **ports}, "")


def test_members_and_ports_are_one_per_process(tmp_path: Path) -> None:
    members = SuiteConfig(tmp_path, processes=TWO).members()
    assert members == [
        "teacher",
        "teacher-2",
        "concepts",
        "concepts-2",
        "concepts-3",
        "student",
        "gateway",
    ]
    ports = configs.choose_ports(0, TWO)
    assert set(ports) == {*members, configs.HTTP}
    assert len(set(ports.values())) == len(ports)
    assert [configs.service_of(name) for name in members[:3]] == ["teacher", "teacher", "concepts"]


def test_fixed_ports_leave_room_for_all(tmp_path: Path) -> None:
    most = dict.fromkeys(configs.REPLICATED, configs.MAX_PROCESSES)
    offsets = configs._offsets(most)
    assert len(set(offsets.values())) == len(offsets) == 3 + 2 * configs.MAX_PROCESSES
    assert offsets["teacher"] == 1
    assert offsets["teacher-2"] == 11


def test_clients_get_all_addresses(tmp_path: Path) -> None:
    gateway = environment("gateway", TWO, tmp_path)
    assert gateway["GATEWAY_TEACHER_ADDRESS"] == "ipv4:127.0.0.1:1000,127.0.0.1:1001"
    assert gateway["GATEWAY_STUDENT_ADDRESS"] == "127.0.0.1:1005"
    student = environment("student", TWO, tmp_path)
    assert student["STUDENT_TEACHER_ADDRESS"] == gateway["GATEWAY_TEACHER_ADDRESS"]
    assert environment("gateway", {}, tmp_path)["GATEWAY_TEACHER_ADDRESS"] == "127.0.0.1:1000"


def test_each_process_has_a_gpu_and_a_metrics_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCEPTS_DEVICE", "cuda")
    monkeypatch.setenv("CONCEPTS_METRICS_PORT", "9100")
    second = environment("concepts-2", TWO, tmp_path)
    assert second["CONCEPTS_PORT"] == "1003"
    assert (second["CONCEPTS_DEVICE"], second["CONCEPTS_METRICS_PORT"]) == ("cuda:1", "9101")
    assert "TEACHER_DEVICE" not in environment("teacher-2", TWO, tmp_path)
    assert "CONCEPTS_DEVICE" not in environment("concepts", {}, tmp_path)
