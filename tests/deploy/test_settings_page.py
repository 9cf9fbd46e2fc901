"""docs/settings.md is what the settings classes say."""

from __future__ import annotations

from scripts.settings_table import PAGE, SERVICES, docs_of, render


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "python scripts/settings_table.py"


def test_every_setting_says_what_it_is_for() -> None:
    missing = [
        f"{service}.{name}"
        for service, settings in SERVICES.items()
        for name in settings.model_fields
        if not docs_of(settings).get(name)
    ]
    assert not missing


def test_a_setting_stands_in_one_row_with_every_services_default() -> None:
    (row,) = [line for line in render().splitlines() if line.startswith("| `port` |")]
    assert [cell.strip() for cell in row.split("|")[2:6]] == [
        "`7101`",
        "`7102`",
        "`7103`",
        "`7100`",
    ]
