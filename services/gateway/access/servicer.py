"""AccessService: keys, who the caller is, sessions, the audit log and quotas."""

from __future__ import annotations

import asyncio
import math
import re

from stillhouse.gateway.v1 import access_pb2 as pb
from stillhouse.gateway.v1 import access_pb2_grpc

from services.common import names
from services.common.errors import InvalidInput, NotFound
from services.common.interceptors import Context
from services.gateway.access import api_keys, audit, identity, sessions
from services.gateway.access.authenticator import Authenticator, key_of
from services.gateway.access.identity import EVERY
from services.gateway.access.quotas import OwnLimits, Quotas
from services.gateway.datasets.records import to_timestamp
from services.gateway.paging import page
from services.gateway.store import Store

_QUOTA = re.compile(r"projects/([^/]+)/quota")
_HOUR_S = 3600.0


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """The RPCs of AccessService; the interceptor has checked who calls."""

    def __init__(
        self, store: Store, authenticator: Authenticator, quotas: Quotas, *, session_hours: float
    ) -> None:
        self._store, self._authenticator, self._quotas = store, authenticator, quotas
        self._session_s = session_hours * _HOUR_S

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Context
    ) -> pb.CreateApiKeyResponse:
        creator = identity.current().subject
        row, secret = await asyncio.to_thread(api_keys.create, self._store, request, creator)
        self._authenticator.keys.forget(row.key_id)
        return pb.CreateApiKeyResponse(api_key=api_keys.to_message(row), secret=secret)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Context
    ) -> pb.ListApiKeysResponse:
        project = api_keys.check_project(request.project)
        wanted = page(request.page_size, request.page_token, "api keys", project)
        rows, token = await asyncio.to_thread(api_keys.list_page, self._store, project, wanted)
        found = [api_keys.to_message(row) for row in rows]
        return pb.ListApiKeysResponse(api_keys=found, next_page_token=token)

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Context
    ) -> pb.RevokeApiKeyResponse:
        row = await asyncio.to_thread(api_keys.revoke, self._store, request.name)
        self._authenticator.keys.forget(row.key_id)
        return pb.RevokeApiKeyResponse(api_key=api_keys.to_message(row))

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Context) -> pb.WhoAmIResponse:
        who, project = identity.current(), request.project
        if project:
            api_keys.check_project(project)
            if not who.role_in(project):
                said = f"there is no project {project}"
                raise NotFound(said, resource=f"projects/{project}")
        grants = [pb.Grant(project=one, role=role) for one, role in sorted(who.grants.items())]
        found = pb.WhoAmIResponse(
            subject=who.subject,
            display_name=who.display_name,
            credential=who.kind,
            grants=grants,
            role=who.role_in(project or EVERY),
        )
        if who.expires is not None:
            found.expire_time.CopyFrom(to_timestamp(who.expires))
        return found

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        who = identity.current()
        if who.session:
            raise InvalidInput("a session cannot open another one; send the key itself")
        made = await asyncio.to_thread(
            sessions.open_one, self._store, who, key_of(who), self._session_s
        )
        return pb.CreateSessionResponse(token=made[0], expire_time=to_timestamp(made[1]))

    async def EndSession(
        self, request: pb.EndSessionRequest, context: Context
    ) -> pb.EndSessionResponse:
        one = identity.current().session
        if one:
            await asyncio.to_thread(sessions.end, self._store, one)
            self._authenticator.sessions.forget(one)
        return pb.EndSessionResponse()

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        project = api_keys.check_project(request.project)
        wanted = page(request.page_size, request.page_token, "audit entries", project)
        rows, token = await asyncio.to_thread(audit.list_page, self._store, project, wanted)
        found = [audit.to_message(row) for row in rows]
        return pb.ListAuditEntriesResponse(entries=found, next_page_token=token)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.GetQuotaResponse:
        return pb.GetQuotaResponse(quota=await self._quota(_project_of(request.name)))

    async def UpdateQuota(
        self, request: pb.UpdateQuotaRequest, context: Context
    ) -> pb.UpdateQuotaResponse:
        project = _project_of(request.name)
        await self._quotas.update(project, _own_limits(request.own_limits))
        return pb.UpdateQuotaResponse(quota=await self._quota(project))

    async def _quota(self, project: str) -> pb.Quota:
        jobs, size = await self._quotas.usage(project)
        own, limits = self._quotas.own(project), self._quotas.limits(project)
        return pb.Quota(
            name=f"projects/{project}/quota",
            own_limits=pb.QuotaLimits(
                calls_per_second=own.calls_per_second,
                unfinished_jobs=own.unfinished_jobs,
                stored_bytes=own.stored_bytes,
            ),
            limits=pb.QuotaLimits(
                calls_per_second=limits.calls_per_second,
                unfinished_jobs=limits.unfinished_jobs,
                stored_bytes=limits.stored_bytes,
            ),
            unfinished_jobs=jobs,
            stored_bytes=size,
        )


def _project_of(name: str) -> str:
    found = _QUOTA.fullmatch(name)
    if found is None:
        said = f"name: {name[:120]!r} is not of the form projects/*/quota"
        raise InvalidInput(said, field="name")
    return names.check_id(found[1], field="name")


def _own_limits(given: pb.QuotaLimits) -> OwnLimits:
    """Return limits as they are kept. Raises InvalidInput for one that is none."""
    found = {name: value for field, value in given.ListFields() if (name := field.name)}
    for name, value in found.items():
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(f"{name}: from 0, which is no limit", field=f"own_limits.{name}")
    return OwnLimits(**found)
