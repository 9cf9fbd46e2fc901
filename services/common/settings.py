"""Settings every service shares. Only modules named settings.py read the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.fairness import Weights
from services.common.hosts import is_loopback, reachable
from services.common.tls import TlsFiles

MIB = 1 << 20
PORTS = {"gateway": 7100, "teacher": 7101, "concepts": 7102, "student": 7103}
"""Where each service listens where nothing else is said."""
_PASSWORD = re.compile(r"(://[^/@]*:)[^@]*@")


class ServiceSettings(BaseSettings):
    """Base of the services' settings; each adds its own and sets the prefix (`TEACHER_`, ...)."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    host: str = "127.0.0.1"
    """Address to listen on. Off loopback teacher, concepts and student want `tls_ca` or
    `trusted_network`."""
    port: int = Field(0, ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    tls_cert: Path | None = None
    """PEM file of the certificate, and of those between it and the authority's, that the service
    shows to callers and to services that it calls; nothing speaks plain text. Read again when it
    changes, as the next two are."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_ca: Path | None = None
    """PEM file of the authorities (mutual TLS): callers must show a certificate by one of them, and
    so must the services that are called; without it these are called in plain text."""
    tls_clients: tuple[str, ...] = ()
    """Names of the certificates that may call, as a JSON list; empty lets every certificate of
    `tls_ca` call. Health answers all of them."""
    tls_names: dict[str, str] = Field(default_factory=dict)
    """Names to expect in the certificates of the services that are called, as a JSON object by
    service; without one the host of the address, or of a list of addresses the service's name."""
    trusted_network: bool = False
    """Listen off loopback without `tls_ca`, because something else, as a service mesh, encrypts and
    decides who may call."""
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
    max_connection_age_s: float = Field(300.0, ge=0)
    """Seconds after which a connection is asked to go, calls in flight excepted, so that clients
    look up the service's name again and find replicas that are new; gRPC spreads it by a tenth.
    0 keeps connections."""
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
    """Items that may wait for a model, from their call's arrival on, before calls are refused with
    RESOURCE_EXHAUSTED. Projects share the room by their weights, with place
    kept for a newcomer: alone a project may fill half of it, beside another a third."""
    reflection: bool = True
    """Serve gRPC reflection."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both, or neither")
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError("tls_ca needs tls_cert and tls_key")
        if self.tls_clients and self.tls_ca is None:
            raise ValueError("tls_clients needs tls_ca, which says whose certificates count")
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """The certificate files; None where the service speaks plain text."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_ca, self.tls_names)

    @property
    def peer_tls(self) -> TlsFiles | None:
        """What is shown to services that are called; None where they are called in plain text."""
        return self.tls if self.tls_ca else None

    @property
    def is_open(self) -> bool:
        """Whether others on the network could call without showing who they are."""
        return not (is_loopback(self.host) or self.tls_ca or self.trusted_network)

    def shown(self) -> dict[str, Any]:
        """Return the settings in force as they may be logged: passwords in URLs are left out."""
        return {
            name: _PASSWORD.sub(r"\1***@", value) if isinstance(value, str) else value
            for name, value in self.model_dump(mode="json").items()
        }


class Listening(BaseSettings):
    """Where a service of this machine listens, for programs that look after it."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    @classmethod
    def of(cls, service: str) -> Listening:
        """Return what the environment says of a service (`TEACHER_PORT`), or its defaults."""
        found = cls(_env_prefix=f"{service.upper()}_")
        return found if found.port else found.model_copy(update={"port": PORTS[service]})

    @property
    def tls(self) -> TlsFiles | None:
        """What the service shows; who looks after it shows the same."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_ca)

    @property
    def address(self) -> str:
        """`host:port` at which a caller on this machine reaches the service."""
        return f"{reachable(self.host)}:{self.port}"


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
    """How long a forming batch waits for more items, at most; it does not wait where calls come
    further apart than this."""
    max_batch_ms: float = Field(500.0, ge=0)
    """How long a forward pass for online calls may take: batches are made smaller than `max_batch`
    where the measured time says so. What a lone call waits at most for somebody else's batch; 0
    sets no limit."""
    shard_batch: int = Field(16, ge=1)
    """The fixed, padded batch shape of job shards."""
    project_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Shares of computing time where several projects want more than there is, as a JSON object;
    a project that is not named weighs 1."""
    job_weight: float = Field(0.1, gt=0, le=1)
    """Share of a project's jobs against its online calls: what jobs keep while online calls would
    fill the device. Jobs take all that online calls leave."""
    max_models_bytes: int = Field(8 << 30, ge=0)
    """Bytes of image models' weights kept in memory; the least recently used of those that nobody
    uses leaves first, the preloaded one never. 0 means no limit."""
    image_precision: Literal["", "float32", "float16", "bfloat16"] = ""
    """What image networks compute in; empty means float16 on a GPU with tensor cores, else float32.
    Any but float32 gives models another digest, because their outputs differ."""
    compile_mode: Literal["", "default", "reduce-overhead", "max-autotune"] = ""
    """torch.compile of image networks; empty runs them as they are. Loading takes minutes then;
    reduce-overhead uses CUDA graphs."""
    jpeg_draft: bool = False
    """Decode large JPEGs at a half, a quarter or an eighth of their size: faster, and part of the
    preprocessing digest, because pixels differ."""

    @property
    def weights(self) -> Weights:
        """The shares of projects and jobs."""
        return Weights(self.project_weights, self.job_weight)
