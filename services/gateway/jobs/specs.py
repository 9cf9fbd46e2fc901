"""What a job's specification must be before anything else is looked at, by kind of job."""

from __future__ import annotations

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import InvalidInput
from services.common.sandbox import Sandbox
from services.gateway.jobs.checks import check_concept_spec, check_head_spec
from services.gateway.jobs.classifier_specs import check_classifier_spec
from services.gateway.jobs.language_specs import check_language_spec
from services.gateway.jobs.prune_specs import check_prune_spec
from services.gateway.jobs.tuneshift_specs import check_tuneshift_spec


def check_spec(project: str, job: pb.DistillationJob, *, sandbox: Sandbox | None = None) -> None:
    """Raise InvalidInput for a specification that is malformed or reaches into another project,
    Precondition for one that this gateway is not set up for."""
    kind = job.WhichOneof("spec")
    if kind == "concept":
        check_concept_spec(project, job.concept)
    elif kind == "teacher_head":
        check_head_spec(project, job.teacher_head)
    elif kind == "language":
        check_language_spec(project, job.language, sandbox=sandbox)
    elif kind == "tuneshift":
        check_tuneshift_spec(project, job.tuneshift, sandbox=sandbox)
    elif kind == "prune":
        check_prune_spec(project, job.prune, sandbox=sandbox)
    elif kind == "classifier":
        check_classifier_spec(project, job.classifier)
    else:
        raise InvalidInput(
            "job: one of concept, teacher_head, language, tuneshift, prune, classifier is required",
            field="job.spec",
        )
