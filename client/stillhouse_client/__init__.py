"""Client of Stillhouse: `AsyncClient` and `Client`, over the published contract alone."""

from stillhouse_client.client import AsyncClient
from stillhouse_client.errors import ClientError
from stillhouse_client.sync import Client

__all__ = ["AsyncClient", "Client", "ClientError"]
