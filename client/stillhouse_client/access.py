"""Keys, who the caller is, quotas and the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb
from stillhouse.gateway.v1 import access_pb2_grpc

from stillhouse_client.errors import InvalidRequest
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

ROLES = ("viewer", "tuner", "runner", "admin")


class AsyncAccess:
    """What a client can ask and change about who may do what."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = access_pb2_grpc.AccessServiceStub(transport.channel)

    async def who_am_i(self) -> pb.WhoAmIResponse:
        """Return who the caller is and what he may do."""
        return await self._transport.call(self._stub.WhoAmI, pb.WhoAmIRequest())

    async def create_key(
        self, role: str, *, display_name: str = "", lifetime_s: int = 0, project: str = ""
    ) -> pb.CreateApiKeyResponse:
        """Make an API key of a project, or of `*`; its secret is in the answer alone."""
        request = pb.CreateApiKeyRequest(
            project=project or self._project,
            role=_role(role),
            display_name=display_name,
            lifetime_s=lifetime_s,
            request_id=new_request_id(),
        )
        return await self._transport.call(self._stub.CreateApiKey, request)

    async def keys(self, *, project: str = "") -> list[pb.ApiKey]:
        """Return a project's keys, newest first."""

        async def fetch(token: str) -> tuple[Sequence[pb.ApiKey], str]:
            request = pb.ListApiKeysRequest(
                project=project or self._project, page_size=PAGE_SIZE, page_token=token
            )
            reply = await self._transport.call(self._stub.ListApiKeys, request)
            return reply.api_keys, reply.next_page_token

        return await collect(fetch)

    async def revoke_key(self, key_id: str, *, project: str = "") -> pb.ApiKey:
        """Revoke a key, by its id or its full name."""
        name = key_id if "/" in key_id else f"projects/{project or self._project}/apiKeys/{key_id}"
        request = pb.RevokeApiKeyRequest(name=name, request_id=new_request_id())
        return (await self._transport.call(self._stub.RevokeApiKey, request)).api_key

    async def audit(self, *, limit: int = 100, project: str = "") -> list[pb.AuditEntry]:
        """Return the newest entries of the audit log."""

        async def fetch(token: str) -> tuple[Sequence[pb.AuditEntry], str]:
            request = pb.ListAuditEntriesRequest(
                project=project or self._project, page_size=min(limit, 500), page_token=token
            )
            reply = await self._transport.call(self._stub.ListAuditEntries, request)
            return reply.entries, reply.next_page_token

        return await collect(fetch, limit=limit)

    async def quota(self) -> pb.Quota:
        """Return what the project may use and what it uses."""
        request = pb.GetQuotaRequest(name=f"projects/{self._project}/quota")
        return (await self._transport.call(self._stub.GetQuota, request)).quota

    async def set_quota(self, limits: pb.QuotaLimits) -> pb.Quota:
        """Set all limits of the project's own."""
        request = pb.UpdateQuotaRequest(
            name=f"projects/{self._project}/quota",
            own_limits=limits,
            request_id=new_request_id(),
        )
        return (await self._transport.call(self._stub.UpdateQuota, request)).quota


def _role(name: str) -> access_pb2.Role.ValueType:
    if name not in ROLES:
        raise InvalidRequest(f"role: {name!r} is none of {', '.join(ROLES)}")
    return access_pb2.Role.Value(f"ROLE_{name.upper()}")


def role_name(role: access_pb2.Role.ValueType) -> str:
    """Return a role as people write it."""
    return access_pb2.Role.Name(role).removeprefix("ROLE_").lower()
