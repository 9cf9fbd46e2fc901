"""Settings of the concepts service: `CONCEPTS_*` in the environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import PORTS, ModelSettings


class ConceptsSettings(ModelSettings):
    """What every model service has, on port 7102."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_prefix="CONCEPTS_"
    )

    port: int = Field(PORTS["concepts"], ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    preload: str = "effl2-minilm"
    """Encoder loaded at start, whose canary readiness follows; others load when first asked for."""
    corpus: str = "everyday"
    """Built-in concept set whose mean text embedding is the default `tau`."""
    text_cache: int = Field(16_384, ge=0)
    """Text embeddings kept per encoder."""
