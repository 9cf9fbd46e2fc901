"""Calls by tritonclient, in an environment of its own: reads what to ask as JSON, writes the
answers as JSON. Imports nothing of ours.

Numbers are hexadecimal bytes, so that the other side can compare them bit by bit.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException


def main() -> None:
    asked = json.load(sys.stdin)
    if asked["what"] == "contract":
        told = contract()
    else:
        told = calls(triton.InferenceServerClient(asked["address"]), asked)
    json.dump(told, sys.stdout)


def contract() -> dict[str, Any]:
    """The protocol as tritonclient was built with it."""
    file = descriptor_pb2.FileDescriptorProto()
    service_pb2.DESCRIPTOR.CopyToProto(file)
    return {"file": base64.b64encode(file.SerializeToString()).decode()}


def calls(client: triton.InferenceServerClient, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that a user would do with one model."""
    name, version = asked["model"], asked["version"]
    data = [base64.b64decode(one) for one in asked["images"]]
    encoded = np.array(data, dtype=np.object_)
    metadata = client.get_model_metadata(name, version, as_json=True)
    told: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(as_json=True),
        "metadata": metadata,
        "model_ready": client.is_model_ready(name, version),
        "index": client.get_model_repository_index(as_json=True),
    }
    told["encoded"] = answer(infer(client, asked, "BYTES", encoded), metadata)
    pixels = np.frombuffer(base64.b64decode(asked["pixels"]), np.uint8).reshape(asked["shape"])
    told["uint8"] = answer(infer(client, asked, "UINT8", pixels), metadata)
    best = [triton.InferRequestedOutput("probabilities", class_count=2)]
    found = infer(client, asked, "BYTES", encoded, outputs=best).as_numpy("probabilities")
    told["best"] = [[text.decode() for text in row] for row in found]
    try:
        infer(client, asked, "BYTES", np.array([data[0], b"broken"], dtype=np.object_))
    except InferenceServerException as error:
        told["refused"] = [error.status(), error.message()]
    told["statistics"] = client.get_inference_statistics(name, as_json=True)
    client.load_model(name)
    return told


def infer(
    client: triton.InferenceServerClient,
    asked: dict[str, Any],
    datatype: str,
    values: np.ndarray,
    **more: Any,
) -> Any:
    image = triton.InferInput("images", list(values.shape), datatype)
    image.set_data_from_numpy(values)
    return client.infer(
        asked["model"], [image], asked["version"], request_id="a call", client_timeout=60, **more
    )


def answer(result: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for output in metadata["outputs"]:
        values = result.as_numpy(output["name"])
        if output["datatype"] == "BYTES":
            told[output["name"]] = [[text.decode() for text in row] for row in values]
        else:
            told[output["name"]] = [values.dtype.str, values.shape, values.tobytes().hex()]
    response = result.get_response()
    return {"outputs": told, "id": response.id, "version": response.model_version}


if __name__ == "__main__":
    main()
