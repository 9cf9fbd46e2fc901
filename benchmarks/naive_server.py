"""What one writes first: a gRPC server that runs one forward pass per request.

The same contract, decoder and preprocessing as the services, and the library's own model; no queue,
no batches, gRPC's usual ten threads. The serving benchmark measures it beside the services.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import torch
from serving_world import SETTINGS, Bare, bare_classifier, bare_encoder
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.images import decode
from services.common.tensors import to_message


class NaiveConcepts(concepts_pb2_grpc.ConceptsServiceServicer):
    """EmbedImages, one forward pass a request."""

    def __init__(self, model: Bare) -> None:
        self._model = model

    def EmbedImages(  # type: ignore[override]
        self, request: concepts_pb2.EmbedImagesRequest, context: grpc.ServicerContext
    ) -> concepts_pb2.EmbedImagesResponse:
        response = concepts_pb2.EmbedImagesResponse()
        for item in request.items:
            with torch.inference_mode():
                batch = self._model.preprocessing(decode(item.data))[None]
                row = self._model.run(batch)[0].half().numpy()
            response.results.add(item_id=item.item_id, embedding=to_message(row))
        response.timings.batch_size = 1
        return response


class NaiveTeacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Classify, one forward pass a request."""

    def __init__(self, model: Bare) -> None:
        self._model = model

    def Classify(  # type: ignore[override]
        self, request: teacher_pb2.ClassifyRequest, context: grpc.ServicerContext
    ) -> teacher_pb2.ClassifyResponse:
        response = teacher_pb2.ClassifyResponse()
        for item in request.items:
            with torch.inference_mode():
                batch = self._model.preprocessing(decode(item.data))[None]
                row = self._model.run(batch)[0].numpy()
            answer = teacher_pb2.Classification(logits=to_message(row))
            response.results.add(item_id=item.item_id, classification=answer)
        response.timings.batch_size = 1
        return response


def main() -> None:
    """Serve until ended; prints `listening HOST:PORT`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["encoder", "classifier"])
    parser.add_argument("model")
    parser.add_argument("--catalogue", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(SETTINGS.threads)
    server = grpc.server(ThreadPoolExecutor(10))
    if args.kind == "encoder":
        servicer = NaiveConcepts(bare_encoder(args.model, args.catalogue))
        concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(servicer, server)
    else:
        classifier = NaiveTeacher(bare_classifier(args.model))
        teacher_pb2_grpc.add_TeacherServiceServicer_to_server(classifier, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
