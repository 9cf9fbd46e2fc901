"""Sessions, tokens, quotas, the audit log, page tokens and replays, at a gateway that asks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from pydantic import ValidationError
from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common.errors import (
    CredentialsExpired,
    InvalidInput,
    PeerUnavailable,
    Unauthenticated,
)
from services.gateway.access import exposure, key_format
from services.gateway.access.audit import Entry
from services.gateway.access.authenticator import COOKIE
from services.gateway.access.lookups import Lookups
from services.gateway.access.tokens import Tokens
from services.gateway.paging import page, seal, unseal
from services.gateway.settings import GatewaySettings
from services.gateway.store import JobRow
from tests.gateway.access_world import make_key
from tests.gateway.edge_world import JSON, World, edge_world
from tests.support import free_port

AUDIENCE = "stillhouse"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with asking(tmp_path) as running:
        yield running


def asking(folder: Path, **settings: Any) -> Any:
    file = folder / "admin.key"
    file.write_text(key_format.make(key_format.KEY)[0])
    return edge_world(folder, auth="required", admin_key_file=file, **settings)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def admin(world: World) -> dict[str, str]:
    file = world.gateway.settings.admin_key_file
    assert file is not None
    return bearer(file.read_text())


async def test_a_browser_logs_in_and_out(world: World) -> None:
    key = make_key(world.gateway.store, "default", access_pb2.ROLE_TUNER)
    assert (await world.http.get("/v1/whoami")).status_code == 401
    opened = await world.http.post("/v1/session", headers=bearer(key))
    assert opened.status_code == 204
    said = opened.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert "secure" not in said
    cookie = {"Cookie": f"{COOKIE}={opened.cookies[COOKIE]}"}
    world.http.cookies.clear()
    who = (await world.http.get("/v1/whoami?project=default", headers=cookie)).json()
    assert who["role"] == "ROLE_TUNER"
    assert who["credential"] == "CREDENTIAL_KIND_SESSION"
    foreign = {**cookie, "Origin": "http://evil.example"}
    assert (await world.http.delete("/v1/session", headers=foreign)).status_code == 403
    assert (await world.http.delete("/v1/session", headers=cookie)).status_code == 204
    assert (await world.http.get("/v1/whoami", headers=cookie)).status_code == 401


async def test_everybody_learns_which_credentials_are_taken(tmp_path: Path, world: World) -> None:
    found = (await world.http.get("/v1/info")).json()
    assert found["credentials"] == ["CREDENTIAL_KIND_API_KEY"]
    provider = {"oidc_issuer": "https://id.example", "oidc_audience": AUDIENCE}
    (tmp_path / "two").mkdir()
    async with asking(tmp_path / "two", **provider) as other:
        said = (await other.http.get("/v1/info")).json()["credentials"]
        assert said == ["CREDENTIAL_KIND_API_KEY", "CREDENTIAL_KIND_TOKEN"]
        # Which provider it is, is nobody's business before he has logged in.
        assert "id.example" not in (await other.http.get("/v1/info")).text


async def test_streams_and_pictures_need_the_cookie_alone(world: World) -> None:
    key = make_key(world.gateway.store, "default", access_pb2.ROLE_VIEWER)
    opened = await world.http.post("/v1/session", headers=bearer(key))
    cookie = {"Cookie": f"{COOKIE}={opened.cookies[COOKIE]}"}
    world.http.cookies.clear()
    events = {"Accept": "text/event-stream"}
    watch = "/v1/projects/default/distillationJobs/none:watch"
    assert '"code":16' in (await world.http.get(watch, headers=events)).text.replace(" ", "")
    allowed = await world.http.get(watch, headers={**events, **cookie})
    assert '"code":5' in allowed.text.replace(" ", "")
    picture = f"/v1/projects/default/images/{'a' * 64}"
    assert (await world.http.get(picture)).status_code == 401
    assert (await world.http.get(picture, headers=cookie)).status_code == 404


async def test_over_https_the_cookie_is_secure(world: World) -> None:
    host = world.http.base_url.netloc.decode()
    headers = {**admin(world), "Origin": f"https://{host}"}
    opened = await world.http.post("/v1/session", headers=headers)
    assert "secure" in opened.headers["set-cookie"].lower()


async def test_a_key_is_made_used_and_revoked(world: World) -> None:
    body = json.dumps({"role": "ROLE_VIEWER", "requestId": "r1", "displayName": "night"})
    path = "/v1/projects/default/apiKeys"
    headers = {**admin(world), **JSON}
    made = (await world.http.post(path, content=body, headers=headers)).json()
    again = (await world.http.post(path, content=body, headers=headers)).json()
    assert again["apiKey"] == made["apiKey"]
    assert again["secret"] == ""
    other = json.dumps({"role": "ROLE_ADMIN", "requestId": "r1"})
    refused = await world.http.post(path, content=other, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["details"][1]["fieldViolations"][0]["field"] == "request_id"
    mine = bearer(made["secret"])
    assert (await world.http.get("/v1/projects/default/students", headers=mine)).status_code == 200
    name = made["apiKey"]["name"]
    await world.http.post(f"/v1/{name}:revoke", content="{}", headers=headers)
    gone = await world.http.get("/v1/projects/default/students", headers=mine)
    assert gone.json()["details"][0]["reason"] == "CREDENTIALS_EXPIRED"
    secret = made["secret"].encode()
    files = [file for file in Path(world.gateway.settings.database_url[10:]).parent.glob("*.db*")]
    assert files
    assert all(secret not in file.read_bytes() for file in files)


async def test_what_was_done_and_refused_is_in_the_audit_log(world: World) -> None:
    viewer = make_key(world.gateway.store, "default", access_pb2.ROLE_VIEWER)
    path = "/v1/projects/default/students/fruit:undo"
    refused = await world.http.post(path, content="{}", headers={**bearer(viewer), **JSON})
    assert refused.status_code == 403
    assert refused.json()["details"][0]["metadata"] == {"needed_role": "tuner", "role": "viewer"}
    missing = await world.http.post(path, content="{}", headers={**admin(world), **JSON})
    assert missing.status_code == 404
    found = await world.http.get("/v1/projects/default/auditEntries", headers=admin(world))
    first, second = found.json()["entries"]
    assert first["code"] == "NOT_FOUND"
    assert first["requestId"] == missing.headers["x-request-id"]
    assert second["code"] == "PERMISSION_DENIED"
    assert second["method"] == "stillhouse.gateway.v1.StudentsService/UndoTuning"
    assert second["resource"] == "projects/default/students/fruit"
    assert second["subject"].startswith("apiKeys/")


async def test_no_secret_of_a_refused_call_is_in_the_audit_log(world: World) -> None:
    runner = make_key(world.gateway.store, "default", access_pb2.ROLE_RUNNER)
    secret = "whsec_c2VjcmV0LXRoYXQtbm9ib2R5LW1heS1zZWU="
    hook = {"uri": "https://example.org/hook", "secret": secret}
    body = json.dumps({"project": {"webhooks": [hook]}})
    path = "/v1/projects/default"
    said = await world.http.patch(path, content=body, headers={**bearer(runner), **JSON})
    assert said.status_code == 403
    found = await world.http.get(f"{path}/auditEntries", headers=admin(world))
    first = found.json()["entries"][0]
    assert first["resource"] == "projects/default"
    assert secret not in found.text


async def test_an_entry_that_no_database_takes_does_no_harm_to_others(world: World) -> None:
    audit = world.gateway.audit
    entries = [
        Entry("default", "apiKeys/x", "x", "m", f"projects/default/{name}", "OK", "", "r", "p")
        for name in ("good", "bad\0name", "half\ud800")
    ]
    for one in entries:
        audit.note(one)
    await audit.close()
    found = await world.http.get("/v1/projects/default/auditEntries", headers=admin(world))
    shown = [one["resource"].rpartition("/")[2] for one in found.json()["entries"][:3]]
    assert shown == ["half?", "bad\ufffdname", "good"]


async def test_what_was_read_before_it_was_forgotten_is_not_kept() -> None:
    begun, may_end, value = threading.Event(), threading.Event(), ["old"]

    def load(ids: Sequence[str]) -> dict[str, str]:
        found = dict.fromkeys(ids, value[0])
        begun.set()
        may_end.wait(10)
        return found

    lookups: Lookups[str] = Lookups(load, keep_s=60)
    first = asyncio.create_task(lookups.get("a"))
    await asyncio.to_thread(begun.wait, 10)
    value[0] = "new"
    lookups.forget("a")
    may_end.set()
    await first
    assert await lookups.get("a") == "new"


async def test_a_project_that_calls_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with asking(tmp_path, project_calls_per_s=0.5) as world:
        path, headers = "/v1/projects/default/students", admin(world)
        assert (await world.http.get(path, headers=headers)).status_code == 200
        refused = await world.http.get(path, headers=headers)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "2"
        violation = refused.json()["details"][2]["violations"][0]
        assert violation["subject"] == "projects/default/calls_per_second"
        name = "/v1/projects/default/quota:update"
        body = json.dumps({"ownLimits": {"callsPerSecond": 1000}})
        changed = await world.http.post(name, content=body, headers={**headers, **JSON})
        assert changed.status_code == 200  # whoever sets limits is not held up by them


async def test_jobs_and_bytes_are_limited(world: World) -> None:
    quotas, store = world.gateway.quotas, world.gateway.store
    body = json.dumps({"ownLimits": {"unfinishedJobs": 1, "storedBytes": "5"}})
    headers = {**admin(world), **JSON}
    path = "/v1/projects/default/quota:update"
    changed = (await world.http.post(path, content=body, headers=headers)).json()["quota"]
    assert changed["limits"]["unfinishedJobs"] == 1
    with store.write() as session:
        quotas.admit_job(session, "default")
        session.add(JobRow(project="default", job_id="j", state="QUEUED", spec_json="{}"))
        session.flush()
        with pytest.raises(Exception, match="1 jobs that wait or run, of 1"):
            quotas.admit_job(session, "default")
        quotas.admit_job(session, "other")
    world.gateway.blobs.put("default", b"more than five bytes")
    quotas._stored.clear()
    refused = await world.http.post(
        "/v1/projects/default/archives", content=b"x", headers=admin(world)
    )
    assert refused.status_code == 429
    assert refused.json()["details"][2]["violations"][0]["subject"].endswith("stored_bytes")


def test_page_tokens_are_of_one_list_and_cannot_be_made_up() -> None:
    token = page(1, "", "students", "mine").token(7)
    assert page(1, token, "students", "mine").position == 7
    for wrong in (token[:-2] + "AA", "7", "Nw==", seal("7", "students\0theirs"), "ü"):
        with pytest.raises(InvalidInput, match="page_token"):
            page(1, wrong, "students", "mine")
    with pytest.raises(InvalidInput):
        unseal(token, "jobs\0mine")


@pytest.mark.parametrize(
    ("given", "is_refused"),
    [
        ({}, False),
        ({"host": "0.0.0.0"}, True),
        ({"http_host": "0.0.0.0"}, True),
        ({"http_host": "0.0.0.0", "http_port": -1}, False),
        ({"host": "0.0.0.0", "auth": "required"}, False),
    ],
)
def test_authentication_is_off_only_on_loopback(given: dict[str, Any], is_refused: bool) -> None:
    assert ("GATEWAY_AUTH=required" in exposure.refusal(GatewaySettings(**given))) == is_refused


def test_a_gateway_that_would_serve_everybody_does_not_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.gateway"],
        env={"GATEWAY_HOST": "0.0.0.0", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "GATEWAY_ADMIN_KEY_FILE" in done.stderr
    assert list(tmp_path.iterdir()) == []


class Provider:
    """An identity provider: signs tokens and serves its keys over HTTP."""

    def __init__(self) -> None:
        self.keys = {"one": rsa.generate_private_key(65537, 2048)}
        self.published = ["one"]
        self.asked = 0
        self.issuer = f"http://127.0.0.1:{free_port()}"

    def token(self, kid: str = "one", alg: str = "RS256", **changed: Any) -> str:
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ada",
            "groups": ["ml", "unknown"],
            "exp": time.time() + 300,
            **changed,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.keys[kid], alg, headers={"kid": kid})

    def documents(self) -> dict[str, Any]:
        keys = [
            {**RSAAlgorithm.to_jwk(self.keys[kid].public_key(), as_dict=True), "kid": kid}
            for kid in self.published
        ]
        return {
            "/.well-known/openid-configuration": {"jwks_uri": f"{self.issuer}/keys"},
            "/keys": {"keys": keys},
        }


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked += self.path == "/keys"
            body = json.dumps(made.documents()[self.path]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", int(made.issuer.rpartition(":")[2])), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def tokens_of(provider: Provider) -> Tokens:
    made = Tokens.of(
        GatewaySettings(
            oidc_issuer=provider.issuer,
            oidc_audience=AUDIENCE,
            oidc_grants={"ml": ("fruit:runner", "other:viewer")},
        )
    )
    assert made is not None
    return made


async def test_a_token_gives_the_roles_of_its_claim(provider: Provider) -> None:
    tokens = tokens_of(provider)
    who = await tokens.identify(provider.token())
    assert who.subject == "users/ada"
    assert who.role_in("fruit") == access_pb2.ROLE_RUNNER
    assert who.role_in("elsewhere") == 0
    assert who.kind == pb.CREDENTIAL_KIND_TOKEN
    await tokens.identify(provider.token(sub="bob"))
    assert provider.asked == 1


async def test_tokens_that_are_not_good_are_refused(provider: Provider) -> None:
    tokens, good = tokens_of(provider), provider.token()
    public = provider.keys["one"].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head, _, mark = good.rpartition(".")
    stranger = Provider()
    stranger.issuer = provider.issuer
    bad = [
        provider.token(aud="another"),
        provider.token(iss="http://evil.example"),
        provider.token(exp=None),
        provider.token(sub=None),
        provider.token(nbf=time.time() + 600),
        stranger.token(),
        f"{head}.{mark[:-4]}AAAA",
        jwt.encode({"sub": "ada"}, None, "none", headers={"kid": "one"}),
        with_public_key(pem, good),
    ]
    for token in bad:
        with pytest.raises(Unauthenticated):
            await tokens.identify(token)
    with pytest.raises(CredentialsExpired):
        await tokens.identify(provider.token(exp=time.time() - 120))


def with_public_key(pem: bytes, good: str) -> str:
    """Sign a token by HMAC with the public key, which a careless checker would take."""
    import base64
    import hashlib
    import hmac

    def packed(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    head = packed(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode())
    signed = f"{head}.{good.split('.')[1]}"
    return f"{signed}.{packed(hmac.digest(pem, signed.encode(), hashlib.sha256))}"


async def test_an_unknown_key_is_looked_for_once_a_minute(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(provider)
    await tokens.identify(provider.token())
    provider.keys["two"] = rsa.generate_private_key(65537, 2048)
    provider.published.append("two")
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await tokens.identify(provider.token("two"))
    assert provider.asked == 1
    tokens._keys._tried_s -= 61
    assert (await tokens.identify(provider.token("two"))).subject == "users/ada"
    assert provider.asked == 2


async def test_old_keys_are_used_for_an_hour_while_the_provider_is_away(provider: Provider) -> None:
    tokens = tokens_of(provider)
    await tokens.identify(provider.token())
    keys = tokens._keys
    keys._url = f"http://127.0.0.1:{free_port()}/keys"
    keys._fetched_s -= 1_800
    keys._tried_s -= 61
    assert (await tokens.identify(provider.token())).subject == "users/ada"
    keys._fetched_s -= 1_900
    with pytest.raises(PeerUnavailable):
        await tokens.identify(provider.token())


def test_settings_refuse_what_anybody_could_sign() -> None:
    for algorithm in ("none", "HS256"):
        with pytest.raises(ValidationError):
            GatewaySettings(oidc_algorithms=(algorithm,))
    with pytest.raises(ValidationError):
        GatewaySettings(oidc_issuer="https://id.example")
    with pytest.raises(ValidationError):
        GatewaySettings(oidc_grants={"ml": ("fruit:king",)})


def test_the_table_of_the_docs_is_current() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "access_table.py"), "--check"]
    assert subprocess.run(script, check=False, timeout=240).returncode == 0
