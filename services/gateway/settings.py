"""Settings of the gateway: `GATEWAY_*` in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.addresses import Address
from services.common.settings import PORTS, ServiceSettings
from services.common.tls import TlsFiles
from services.gateway.access.grants import read_grants

_SIGNATURES = frozenset(
    f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)
) | {"EdDSA"}
"""Ways to sign a token that need a private key: whoever checks one cannot make one."""


class GatewaySettings(ServiceSettings):
    """What every service has, on port 7100, with the gateway's stores and peers."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_prefix="GATEWAY_"
    )

    port: int = Field(PORTS["gateway"], ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    database_url: str = "sqlite:///.stillhouse/gateway.db"
    """SQLAlchemy URL of the tables: `sqlite:///path`, or `postgresql+psycopg://...`, which several
    gateways may share. On SQLite the workflow engine keeps its own file beside it."""
    redis_url: str = ""
    """`redis://...` or `unix://path` of the embedding cache; empty works without one."""
    teacher_address: Address = "127.0.0.1:7101"
    """Where TeacherService is: `host:port`, `dns:///name:port` for several instances behind a name,
    or several addresses with commas between them (`10.0.0.1:7101,10.0.0.2:7101`)."""
    concepts_address: Address = "127.0.0.1:7102"
    """Where ConceptsService is, in the same forms."""
    student_address: str = "127.0.0.1:7103"
    """Where StudentService is: one instance, which owns its training runs."""
    executor_id: str = "gateway-0"
    """Stable name of this replica: a gateway that starts takes up the jobs of its name."""
    max_jobs: int = Field(2, ge=1)
    """Jobs that run at a time in this gateway; further ones wait in the queue."""
    max_project_jobs: int = Field(2, ge=1)
    """Jobs of one project that run at a time in this gateway, so that no project starves others."""
    shards_in_flight: int = Field(2, ge=1)
    """Shards of a stage that are asked for at a time: one computes, one is on its way. Take two for
    each instance of the service that computes them; results do not depend on it."""
    peer_timeout_s: float = Field(60.0, gt=0)
    """Deadline of an ordinary call to another service."""
    shard_timeout_s: float = Field(600.0, gt=0)
    """Deadline of a shard: a cold model may have to load first."""
    give_up_s: float = Field(600.0, gt=0)
    """How long a job waits for a service that is away before it fails."""
    cache_timeout_s: float = Field(0.5, gt=0)
    """Longest wait for Redis; slower than this counts as a miss."""
    heartbeat_s: float = Field(5.0, gt=0)
    """Seconds between signs of life on a shared database; after six without one another gateway
    takes over this one's jobs."""
    cache_dir: Path = Path.home() / ".cache" / "stillhouse"
    """Folder of fetched example data, outside any source tree."""
    catalogue: Path | None = None
    """TOML file with model and data entries of your own, beside the built-in ones."""
    file_roots: tuple[Path, ...] = ()
    """Folders that datasets may be read from where `host` is not loopback, as a JSON list."""
    retention_s: float = Field(3600.0, gt=0)
    """Seconds between two looks for what projects' retention rules say is to be removed."""
    deletion_settle_s: float = Field(30.0, ge=0)
    """Seconds for which nothing of a deleted project may turn up before its deletion ends. Where
    several gateways run jobs, take more than a stage computes between two of its messages."""
    answer_days: float = Field(7.0, gt=0)
    """Days for which the answer of a call with a `request_id` is kept, and given again to a call
    that repeats it."""
    allowed_addresses: tuple[str, ...] = ()
    """Where requests may make the gateway connect (datasets by http(s), webhooks) beside public
    addresses, as a JSON list of host names (`*.example.org` for all below it), addresses and
    networks (`10.1.0.0/16`)."""
    run_python_tests: bool = False
    """Let verifiers run Python unit tests on answers, in a sandbox that is attacked at start; where
    it does not hold, such jobs are refused."""
    http_port: int = Field(7180, ge=-1, le=65535)
    """Port of the workbench and of the contract as JSON; 0 lets the system choose and prints it,
    -1 turns HTTP off."""
    http_host: str = ""
    """Address of the HTTP port; empty means `host`."""
    http_max_connections: int = Field(512, ge=1)
    """HTTP connections at a time; further ones get 503."""
    http_read_s: float = Field(30.0, gt=0)
    """Seconds that the headers of an HTTP request may take in all, and that its body may stand
    still, before the connection is closed with 408."""
    max_archive_bytes: int = Field(8 << 30, ge=1)
    """Largest archive or file of texts that can be uploaded, as it is sent."""
    http_tls_cert: Path | None = None
    """PEM file of the certificate that browsers are shown (HTTPS); without it that of `tls_cert`,
    and plain HTTP where there is none."""
    http_tls_key: Path | None = None
    """PEM file of its private key."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, without port, that browsers may call this gateway by, as a JSON list. On loopback
    they come on top of loopback's own names; elsewhere an empty list allows every name."""
    auth: Literal["none", "required"] = "none"
    """Whether callers must show who they are. `none` makes everybody an admin, and is refused where
    the gateway listens beyond loopback. See docs/access.md."""
    admin_key_file: Path | None = None
    """File with a key that is admin of every project: how the first admin gets in. Made by
    `stillhouse keys admin FILE`."""
    key_cache_s: float = Field(5.0, ge=0, le=60)
    """How long a key or session that was looked up is taken as it was: how soon other gateways
    notice that one was revoked."""
    session_hours: float = Field(12.0, gt=0)
    """Hours after which the workbench asks for a key again."""
    oidc_issuer: str = ""
    """Issuer of tokens (OpenID Connect) that are taken beside API keys, as its tokens write it."""
    oidc_audience: str = ""
    """Audience that its tokens must name; required with an issuer."""
    oidc_jwks_url: str = ""
    """Where its public keys are; empty asks `ISSUER/.well-known/openid-configuration`."""
    oidc_algorithms: tuple[str, ...] = ("RS256", "ES256")
    """How tokens may be signed, as a JSON list. Only signatures that need a private key."""
    oidc_claim: str = "groups"
    """Claim whose values give roles."""
    oidc_grants: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Roles by value of that claim, as a JSON object: `{"ml-team": ["fruit:runner"]}`; the project
    `*` stands for every one."""
    project_calls_per_s: float = Field(5000.0, ge=0)
    """Calls a second of one project at this gateway; twice as many may come at once. 0 sets no
    limit; an admin can set other limits for a project."""
    project_unfinished_jobs: int = Field(2000, ge=0)
    """Jobs of one project that wait or run; 0 sets no limit."""
    project_stored_bytes: int = Field(1 << 40, ge=0)
    """Bytes of one project in the blob store, looked at before a call that adds to them; 0 sets no
    limit and counts nothing."""
    audit_refusals_per_s: float = Field(10.0, gt=0)
    """Refused calls a second that the audit log keeps, so that nobody can fill it from outside;
    further ones are counted in the log."""

    @model_validator(mode="after")
    def _check_oidc(self) -> Self:
        """Raise ValueError for tokens that anybody could make, or for grants that are none."""
        for name in self.oidc_algorithms:
            if name not in _SIGNATURES:
                raise ValueError(f"oidc_algorithms: {name!r} is none of {sorted(_SIGNATURES)}")
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("oidc_audience: is required with oidc_issuer")
        for given in self.oidc_grants.values():
            read_grants(given)
        return self

    @property
    def http_tls(self) -> TlsFiles | None:
        """The certificate files of the HTTP port; None where it speaks plain HTTP."""
        if self.http_tls_cert is None or self.http_tls_key is None:
            return self.tls
        return TlsFiles(self.http_tls_cert, self.http_tls_key)

    @property
    def addresses(self) -> dict[str, str]:
        """Where the three services are."""
        return {
            "teacher": self.teacher_address,
            "concepts": self.concepts_address,
            "student": self.student_address,
        }
