"""A key that would cross a network in plain text is told about, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stillhouse_client import AsyncClient, plain_text
from stillhouse_client.certificates import Certificates

KEY = "shk_k234567abcdefghi_secret"


@pytest.fixture(autouse=True)
def _nobody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "_warned", set())
    monkeypatch.delenv("STILLHOUSE_API_KEY", raising=False)


async def test_a_key_in_plain_text_is_told_about_once(caplog: pytest.LogCaptureFixture) -> None:
    for address in ("gateway.example:7100", "gateway.example:7100", "dns:///other.example:7100"):
        async with AsyncClient(address, key=KEY):
            pass
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "gateway.example:7100" in said[0]
    assert "plain text" in said[0]
    assert "STILLHOUSE_TLS_CA" in said[0]
    assert KEY not in caplog.text


async def test_nothing_is_said_where_nobody_can_read_a_key(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_CREDENTIALS", str(tmp_path / "none.json"))
    async with AsyncClient("gateway.example:7100"):
        pass
    async with AsyncClient("gateway.example:7100", key=KEY, certificates=Certificates()):
        pass
    async with AsyncClient("127.0.0.1:7100", key=KEY):
        pass
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:7100", True),
        ("127.9.9.9:1", True),
        ("[::1]:7100", True),
        ("::1", True),
        ("dns:///localhost:7100", True),
        ("ipv4:127.0.0.1:7100,127.0.0.2:7100", True),
        ("ipv6:[::1]:7100", True),
        ("unix:/run/gateway.sock", True),
        ("ipv4:127.0.0.1:7100,10.0.0.2:7100", False),
        ("dns://127.0.0.1/gateway:7100", False),
        ("localhost.example:7100", False),
        ("10.0.0.2:7100", False),
        ("[2001:db8::1]:7100", False),
        ("gateway", False),
    ],
)
def test_which_addresses_stay_on_this_machine(address: str, local: bool) -> None:
    assert plain_text.is_local(address) is local


def test_a_command_says_it_on_standard_error_alone() -> None:
    code = (
        "from stillhouse_client import plain_text\n"
        "plain_text.warn('gateway.example:7100')\n"
        "plain_text.warn('gateway.example:7100')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("warning: the API key is sent to gateway.example:7100") == 1
