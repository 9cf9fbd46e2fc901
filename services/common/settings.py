"""Settings every service shares. Only modules named settings.py read the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class ServiceSettings(BaseSettings):
    """Base of the services' settings; each adds its own and sets the prefix (`TEACHER_`, ...)."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback serves callers without authentication."""
    port: int = Field(0, ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    metrics_port: int = Field(0, ge=0, le=65535)
    """Port of the Prometheus metrics page on `host`; 0 turns it off."""
    metrics_projects: int = Field(100, ge=1)
    """Projects that metrics name; further ones count as `other`."""
    metrics_models: int = Field(100, ge=1)
    """Models that metrics name; further ones count as `other`."""
    otel_endpoint: str = ""
    """Where traces go: gRPC port of an OpenTelemetry collector, as `host:4317` or
    `https://host:4317`; empty sends none. Needs the extra `otel`."""
    otel_sample_ratio: float = Field(1.0, ge=0, le=1)
    """Share of traces kept, where the caller has not decided."""
    log_level: str = "INFO"
    """Lowest level logged."""
    log_json: bool = False
    """Log JSON lines instead of coloured text."""
    blob_url: str = ".stillhouse/blobs"
    """fsspec URL of the blob store: a folder, or a bucket that all services reach."""
    drain_s: float = Field(20.0, ge=0)
    """Seconds running calls get to finish after SIGTERM."""
    canary_s: float = Field(30.0, gt=0)
    """Seconds between canary calls; readiness follows them."""
    max_message_bytes: int = Field(32 * MIB, ge=MIB)
    """Largest gRPC message in either direction."""
    max_batch_items: int = Field(256, ge=1)
    """Largest number of items in one batch call."""
    max_image_bytes: int = Field(16 * MIB, ge=1)
    """Largest encoded image."""
    max_image_pixels: int = Field(64_000_000, ge=1)
    """Largest decoded image, width times height."""
    max_queue_items: int = Field(1024, ge=1)
    """Items that may wait for a model before calls are refused with RESOURCE_EXHAUSTED."""
    reflection: bool = True
    """Serve gRPC reflection."""


class ModelSettings(ServiceSettings):
    """Settings of the services that run models."""

    cache_dir: Path = Path.home() / ".cache" / "stillhouse"
    """Folder of fetched weights and data, outside any source tree."""
    catalogue: Path | None = None
    """TOML file with model entries of your own, beside the built-in ones."""
    device: str = "cpu"
    """Where models run: `cpu`, `cuda`, `cuda:1`."""
    threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    """Threads of a forward pass. Part of what decides the last bits of a result."""
    decode_threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    """Threads that decode and preprocess images."""
    max_batch: int = Field(32, ge=1)
    """Largest batch of a forward pass for online calls."""
    batch_wait_ms: float = Field(2.0, ge=0)
    """How long a forming batch waits for more items."""
    shard_batch: int = Field(16, ge=1)
    """The fixed, padded batch shape of job shards."""
