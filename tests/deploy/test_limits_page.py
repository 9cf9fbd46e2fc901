"""docs/limits.md names settings that exist, with the defaults they have."""

from __future__ import annotations

import pytest

from scripts.settings_table import PAGE, SERVICES

ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (PAGE.parent / "limits.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| entry point")
]
NAMED = [row for row in ROWS if row[2]]


@pytest.mark.parametrize("row", NAMED, ids=lambda row: f"{row[0]}: {row[1]}")
def test_a_row_says_what_the_setting_is(row: list[str]) -> None:
    name = row[2].strip("`")
    found = [
        settings.model_fields[name].get_default()
        for settings in SERVICES.values()
        if name in settings.model_fields
    ]
    assert found
    assert {str(value) for value in found} == {row[3].strip("`")}


def test_every_setting_that_bounds_what_is_sent_has_a_row() -> None:
    """Those that bound what a service keeps of its own are no limit of a caller."""
    own = {"max_models_bytes", "max_batch", "max_batch_ms", "max_language_models", "max_adapters"}
    bounds = {
        name
        for settings in SERVICES.values()
        for name in settings.model_fields
        if "max_" in name and name not in own
    }
    assert bounds == {row[2].strip("`") for row in NAMED} - {"http_read_s"}
