"""Students as files for elsewhere: safetensors with a card, or ONNX. Blocking."""

from __future__ import annotations

from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.student.artefacts import Student
from services.student.head_recipe import put
from services.student.onnx_export import export_student


def export_files(
    blobs: BlobStore, request: student_pb2.ExportRequest, student: Student
) -> student_pb2.ExportResponse:
    """The files of an export, in the blob store. Raises NotFound, InvalidInput."""
    card = _file(blobs, request, "student.json", request.student.card_digest)
    if request.format == student_pb2.EXPORT_FORMAT_ONNX:
        encoder = None
        if request.HasField("encoder_onnx"):
            encoder = blobs.get(request.project, request.encoder_onnx.digest)
        data = put(blobs, request.project, export_student(student, encoder))
        model = student_pb2.ExportedFile(file_name="student.onnx", blob=data)
        return student_pb2.ExportResponse(files=[model, card])
    if request.format in (
        student_pb2.EXPORT_FORMAT_UNSPECIFIED,
        student_pb2.EXPORT_FORMAT_SAFETENSORS,
    ):
        weights = _file(blobs, request, "student.safetensors", request.student.weights_digest)
        return student_pb2.ExportResponse(files=[weights, card])
    raise InvalidInput(f"format: {request.format} is unknown", field="format")


def _file(
    blobs: BlobStore, request: student_pb2.ExportRequest, name: str, digest: str
) -> student_pb2.ExportedFile:
    ref = put(blobs, request.project, blobs.get(request.project, digest))
    return student_pb2.ExportedFile(file_name=name, blob=ref)
