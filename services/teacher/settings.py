"""Settings of the teacher service: `TEACHER_*` in the environment."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ModelSettings


class TeacherSettings(ModelSettings):
    """What every model service has, on port 7101."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_prefix="TEACHER_"
    )

    port: int = Field(7101, ge=0, le=65535)
    """Port to listen on; 0 lets the system choose and prints it."""
    preload: str = "efficientnet-lite0"
    """Model loaded at start, whose canary readiness follows; others load when first asked for."""
    remembered_rows: int = Field(20_000, ge=0)
    """Outputs of job shards kept in memory per trunk, so that several heads cost one pass (about 7
    KB each)."""
