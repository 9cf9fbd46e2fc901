"""Settings of the teacher service: `TEACHER_*` in the environment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.settings import PORTS, ModelSettings


class TeacherSettings(ModelSettings):
    """What every model service has, on port 7101."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_prefix="TEACHER_"
    )

    port: int = Field(PORTS["teacher"], ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    preload: str = "efficientnet-lite0"
    """Model loaded at start, whose canary readiness follows; others load when first asked for."""
    remembered_rows: int = Field(20_000, ge=0)
    """Outputs of job shards kept in memory per trunk, so that several heads cost one pass (about 7
    KB each)."""
    precision: Literal["", "float32", "bfloat16"] = ""
    """What language models compute in; empty means bfloat16 where the device multiplies it faster,
    else float32."""
    max_batch_tokens: int = Field(4096, ge=16)
    """Tokens of a language model's forward pass, padding included; no item may be longer."""
    pass_tokens: int = Field(0, ge=0)
    """What a forward pass of a language model costs besides its tokens, as a number of tokens: an
    item joins a batch where it adds less padding. 0 means 64 on a CPU, 1,024 on a GPU."""
    max_queue_tokens: int = Field(1 << 20, ge=1)
    """Tokens that may wait for a language model before calls are refused."""
    generate_batch: int = Field(16, ge=1)
    """Answers of one call that are written side by side."""
    max_cache_tokens: int = Field(65_536, ge=16)
    """Tokens, prompts and answers, whose keys and values a call may hold at once."""
    max_generations: int = Field(2, ge=1)
    """Generate calls that write at the same time; others wait, up to max_queue_items prompts."""
    max_language_models: int = Field(2, ge=1)
    """Whole language models kept in memory beside the preloaded one; the least recently used leaves
    first."""
    max_adapters: int = Field(16, ge=1)
    """Adapters kept on the models in memory."""
    openai_api_key: SecretStr = SecretStr("")
    """Sent as bearer token to the OpenAI-compatible servers of the catalogue."""
    openai_timeout_s: float = Field(120.0, gt=0)
    """Longest silence of an OpenAI-compatible server."""
    openai_concurrency: int = Field(16, ge=1)
    """Requests that an OpenAI-compatible server gets at once."""
    oip_timeout_s: float = Field(60.0, gt=0)
    """Longest answer of a server of the Open Inference Protocol, tries included."""
    oip_retry_s: float = Field(5.0, ge=0)
    """How long such a server is asked again while it is away; jobs go on asking by themselves."""
    oip_concurrency: int = Field(8, ge=1)
    """Requests that such a server gets at once."""

    @property
    def pass_tokens_in_force(self) -> int:
        """`pass_tokens`, or the device's default."""
        return self.pass_tokens or (64 if self.device == "cpu" else 1024)
