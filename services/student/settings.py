"""Settings of the student service: `STUDENT_*` in the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import PORTS, ServiceSettings


class StudentSettings(ServiceSettings):
    """What every service has, on port 7103, and how training runs."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_prefix="STUDENT_"
    )

    port: int = Field(PORTS["student"], ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    runs_dir: Path = Path(".stillhouse/runs")
    """Folder of training runs: recipe, events, checkpoint and outcome of each."""
    threads: int = Field(2, ge=1)
    """Threads of the solver. Part of what decides the last bits of a student, so a fixed number
    and not that of the machine's cores."""
    processes: int = Field(1, ge=1, le=64)
    """Processes of one run of a language student or classifier, which share its weights, gradients
    and optimizer (FSDP2). Each takes a GPU where `device` is one, else its part of `threads`. A
    run can go on with another number of them."""
    max_runs: int = Field(2, ge=1)
    """Training runs at a time; further ones wait."""
    max_waiting_runs: int = Field(64, ge=0)
    """Runs that may wait before Train is refused with RESOURCE_EXHAUSTED."""
    stop_grace_s: float = Field(5.0, ge=0)
    """Seconds a worker gets after SIGTERM before SIGKILL."""
    owner_address: str = ""
    """Address at which this very process is reached, told to callers of Train; empty means
    `host:port`, or, where the system chose the port, nothing."""
    cache_dir: Path = Path.home() / ".cache" / "stillhouse"
    """Folder of fetched weights, where language students and classifiers begin."""
    catalogue: Path | None = None
    """TOML file with model entries of your own, beside the built-in ones."""
    device: str = "cpu"
    """Where language students and classifiers are trained: `cpu`, `cuda`, `cuda:1`."""
    precision: str = Field("", pattern="^(float32|bfloat16)?$")
    """What language students and classifiers compute in where a recipe does not say; empty means
    bfloat16 where the device multiplies it faster, else float32."""
    teacher_address: str = ""
    """Address of the teacher service, for training on the student's own answers; empty refuses
    it."""
    run_python_tests: bool = False
    """Let evaluations run a model's answers as Python programs, in a sandbox."""
    cached_students: int = Field(32, ge=1)
    """Students kept in memory."""
    cached_tables: int = Field(8, ge=1)
    """Presence tables of training data kept in memory, for Refit and Evaluate."""
    max_concepts: int = Field(20_000, ge=1)
    """Largest number of concepts of a recipe."""
    max_edits: int = Field(64, ge=1)
    """Largest number of edits in one Refit."""
