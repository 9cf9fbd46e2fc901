"""Asks a service for its health: `python -m services.common.probe teacher`, or `HOST:PORT`.

For containers and scripts: the exit status is 0 where it serves, 1 where it does not or does not
answer, 2 for wrong use. Kubernetes asks by itself and needs no such program.
"""

from __future__ import annotations

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.settings import PORTS, Listening
from services.common.tls import TlsFiles, channel_credentials, name_options


def probe(
    address: str,
    *,
    service: str = "",
    timeout_s: float = 3.0,
    tls: TlsFiles | None = None,
    name: str = "",
) -> str:
    """Return the health status of `service` at `address`: `SERVING`, `NOT_SERVING`, ...

    Where there is no answer, the gRPC code that says why, `UNAVAILABLE` for one. With `tls` the
    server must have a certificate of the name `name`.
    """
    with _channel(address, tls, name) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _channel(address: str, tls: TlsFiles | None, name: str) -> grpc.Channel:
    # No proxy: what an environment says about the web does not hold for the machine itself.
    options = [("grpc.enable_http_proxy", 0), *name_options(name)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, channel_credentials(tls.read()), options=options)


def main(argv: list[str] | None = None) -> int:
    """Command line; prints the status and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.common.probe", description=__doc__)
    parser.add_argument("target", help="HOST:PORT, or a service of this machine by name")
    parser.add_argument("--service", default="", help="name to ask for; default the whole process")
    parser.add_argument("--timeout-s", type=float, default=3.0)
    given = parser.parse_args(argv)
    if given.target not in PORTS and ":" not in given.target:
        parser.error(f"{given.target}: neither HOST:PORT nor one of {', '.join(PORTS)}")
    if given.target in PORTS:
        own = Listening.of(given.target)
        address, tls, name = own.address, own.tls, given.target
    else:
        address, tls, name = given.target, None, ""
    status = probe(address, service=given.service, timeout_s=given.timeout_s, tls=tls, name=name)
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
