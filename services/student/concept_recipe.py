"""The concept recipe: presence, a sparse student, its folds, its controls, its report.

Every fit is a phase: a worker that takes over after a crash skips what is done and, since arrays
are stored bit for bit, ends with the same student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput
from services.common.tensors import unpack_arrays
from services.student import contenders
from services.student.activation import active_columns
from services.student.artefacts import Loss, Student, probabilities, to_json, write_student
from services.student.cards import class_means, concept_card
from services.student.contenders import Rows
from services.student.data import ConceptData, Doubles, TextBank, read_bank, read_concept_data
from services.student.evaluation import EvaluationSettings, Scored, Truth, View, dense_probe, score
from services.student.folds import FoldFits, fit_fold, split_folds
from services.student.head_recipe import put
from services.student.metrics import bootstrap_counts, mean_estimate, nec
from services.student.path import SparseFit
from services.student.recipes import Arrays, Training
from services.student.report import Report, Scores, make_report
from services.student.scaling import Scaling, fit_scaling
from services.student.side_by_side import SideBySide, one_core, side_by_side

DEFAULT_DRAWS = 20


@dataclass(frozen=True)
class _Job:
    """What every step of the recipe reads."""

    training: Training
    recipe: student_pb2.ConceptRecipe
    data: ConceptData
    bank: TextBank
    rows: Rows
    truth: Truth
    view: View
    scaling: Scaling

    @property
    def columns(self) -> Doubles:
        """Standardised presence [n, M] of the items fitted to."""
        return self.scaling(self.view[0])

    @property
    def draws(self) -> int:
        """Draws of the random control."""
        asked = self.recipe.control_draws
        return 0 if asked < 0 else asked or DEFAULT_DRAWS


def fit_concept_student(
    training: Training, recipe: student_pb2.ConceptRecipe
) -> student_pb2.ConceptStudentResult:
    """Fit, compare, store. Raises NotFound, InvalidInput, Precondition for unusable data."""
    training.progress("reading teacher outputs and regions", 0, 0)
    with one_core() as threads:
        job = _read(training, recipe)
        student, report = _fit(job, threads)
    training.progress("storing the student", 0, 0)
    return student_pb2.ConceptStudentResult(
        student=write_student(training.blobs, training.project, student),
        report=put(training.blobs, training.project, to_json(report)),
    )


def _fit(job: _Job, threads: int) -> tuple[Student, Report]:
    """Fit the student, its folds and its controls side by side, and compare them."""
    budgets, alone = _budgets(job)
    with side_by_side(threads, job.training.progress) as started:
        own = started.start("fitting the student", lambda: _fit_student(job, budgets))
        controls = _start_controls(started, job, budgets) if len(job.rows.test) else None
        folds = _start_folds(started, job, budgets[0])
        fits = [*alone, *own.result()[len(alone) :]]
        fold_fits = folds()
        report = _numbers(job) | _out_of_fold(job, fold_fits)
        if controls is None:
            report["reason"] = "the test split holds no usable items"
        else:
            report |= _compare(job, budgets, fits, controls())
    return _student(job, fits[0], fold_fits), report


def _read(training: Training, recipe: student_pb2.ConceptRecipe) -> _Job:
    blobs, project = training.blobs, training.project
    data = read_concept_data(blobs, project, recipe.data, whole_image_only=recipe.whole_image_only)
    bank = read_bank(blobs, project, recipe.concept_embeddings, len(recipe.concepts))
    loss = loss_of(recipe.loss, multi_label=data.labels.multi_label)
    rows = Rows(data.labels.rows("train", "val"), data.labels.rows("test"))
    if len(rows.known) < 2:
        raise InvalidInput(
            f"train and val hold {len(rows.known)} usable items, at least 2 are needed",
            field="data.manifest",
        )
    targets = probabilities(data.logits, loss)
    labels = data.labels.hot[rows.test]
    truth = Truth(targets[rows.known], targets[rows.test], labels, loss)
    view = contenders.presence_view(data, bank, rows)
    kept = active_columns(view[0])
    bank = replace(bank, text=bank.text[kept])
    view = (view[0][:, kept], view[1][:, kept])
    named = _with_concepts(recipe, [recipe.concepts[at] for at in kept])
    return _Job(training, named, data, bank, rows, truth, view, fit_scaling(view[0]))


def _with_concepts(
    recipe: student_pb2.ConceptRecipe, concepts: list[str]
) -> student_pb2.ConceptRecipe:
    changed = student_pb2.ConceptRecipe()
    changed.CopyFrom(recipe)
    del changed.concepts[:]
    changed.concepts.extend(concepts)
    return changed


def loss_of(asked: student_pb2.Loss.ValueType, *, multi_label: bool) -> Loss:
    """The loss asked for, or that of the data."""
    if asked == student_pb2.LOSS_UNSPECIFIED:
        return "bce" if multi_label else "softmax"
    return "bce" if asked == student_pb2.LOSS_BCE else "softmax"


def _budgets(job: _Job) -> tuple[list[float], list[SparseFit]]:
    """The NEC budgets, the student's own first, and its fit where it has a lambda instead."""
    if job.recipe.WhichOneof("sparsity") != "l1":
        return contenders.budgets_below(job.recipe.nec or contenders.DEFAULT_NEC), []
    columns, truth = job.columns, job.truth
    arrays = job.training.phase(
        "student-l1",
        lambda: contenders.pack_fits(
            [contenders.fit_l1(columns, truth.train, truth.loss, job.recipe.l1)]
        ),
    )
    fits = contenders.unpack_fits(arrays)
    return contenders.budgets_below(max(nec(fits[0].weights), 1 / len(fits[0].weights))), fits


def _fit_student(job: _Job, budgets: list[float]) -> list[SparseFit]:
    """The student and its sparser siblings, at all budgets."""
    columns, truth = job.columns, job.truth
    arrays = job.training.phase(
        "student",
        lambda: contenders.pack_fits(contenders.fit_at(columns, truth.train, truth.loss, budgets)),
    )
    return contenders.unpack_fits(arrays)


def _start_folds(started: SideBySide, job: _Job, budget: float) -> Callable[[], FoldFits]:
    """Start the student without each fold, by the same rule; the call returned waits for them."""
    loss, lam = job.truth.loss, job.recipe.l1
    by_l1 = job.recipe.WhichOneof("sparsity") == "l1"
    fold_of = split_folds(job.data.labels.hot[job.rows.known], job.recipe.seed)
    columns = job.columns

    def fit(columns: Doubles, targets: Doubles) -> SparseFit:
        if by_l1:
            return contenders.fit_l1(columns, targets, loss, lam)
        return contenders.fit_at(columns, targets, loss, [budget])[0]

    def one(fold: int) -> Arrays:
        return job.training.phase(
            f"fold-{fold}",
            lambda: contenders.pack_fits([fit_fold(columns, job.truth.train, fold_of, fold, fit)]),
        )

    futures = [
        started.start("fitting out of fold", partial(one, fold))
        for fold in range(int(fold_of.max()) + 1)
    ]

    def wait() -> FoldFits:
        fits = [fit for future in futures for fit in contenders.unpack_fits(future.result())]
        return FoldFits(fold_of, tuple(fits))

    return wait


@dataclass(frozen=True)
class _Controls:
    """Scores at all budgets of whom the student is compared with."""

    draws: list[list[Scored]]
    random_words: list[Scored] | None
    sparse_probe: list[Scored]
    dense_probe: Scored


def _start_controls(
    started: SideBySide, job: _Job, budgets: list[float]
) -> Callable[[], _Controls]:
    """Start the controls, the longest first; the call returned waits for them."""
    dense = started.start("fitting probes", lambda: _dense_probe(job))
    words = started.start("fitting random words", lambda: _random_words(job, budgets))
    sparse = started.start("fitting probes", lambda: _sparse_probe(job, budgets))
    draws = [
        started.start("fitting random directions", partial(_random_draw, job, at, budgets))
        for at in range(job.draws)
    ]

    def wait() -> _Controls:
        found = [draw.result() for draw in draws]
        return _Controls(found, words.result(), sparse.result(), dense.result())

    return wait


def _compare(job: _Job, budgets: list[float], fits: list[SparseFit], controls: _Controls) -> Report:
    truth, seed = job.truth, job.recipe.seed
    test = job.scaling(job.view[1])
    scores = Scores(
        budgets,
        contenders.score_fits(truth, test, fits),
        controls.draws,
        controls.random_words,
        controls.sparse_probe,
        controls.dense_probe,
    )
    return make_report(truth, fits[0].logits(test), scores, job.data.labels.classes, seed)


def _random_draw(job: _Job, draw: int, budgets: list[float]) -> list[Scored]:
    def compute() -> Arrays:
        bank = contenders.random_bank(job.bank, job.recipe.seed, draw)
        view = contenders.presence_view(job.data, bank, job.rows)
        return contenders.pack_scores(contenders.score_view(job.truth, view, budgets))

    return contenders.unpack_scores(job.training.phase(f"random-{draw}", compute))


def _random_words(job: _Job, budgets: list[float]) -> list[Scored] | None:
    if not job.recipe.HasField("control_embeddings"):
        return None

    def compute() -> Arrays:
        digest = job.recipe.control_embeddings.digest
        data = job.training.blobs.get(job.training.project, digest)
        arrays = unpack_arrays(data, what="control_embeddings")
        if "text" not in arrays or not np.isfinite(arrays["text"]).all():
            raise InvalidInput(
                "control_embeddings: needs finite `text`", field="control_embeddings"
            )
        bank = contenders.words_bank(job.bank, arrays["text"].astype(np.float16), job.recipe.seed)
        view = contenders.presence_view(job.data, bank, job.rows)
        return contenders.pack_scores(contenders.score_view(job.truth, view, budgets))

    return contenders.unpack_scores(job.training.phase("random-words", compute))


def _sparse_probe(job: _Job, budgets: list[float]) -> list[Scored]:
    """The embedding's own dimensions, sparse like the student."""
    arrays = job.training.shared_phase(
        "sparse-probe",
        _probe_inputs(job) | {"budgets": repr(budgets)},
        lambda: contenders.pack_scores(
            contenders.score_view(job.truth, job.rows.view(job.data.whole_image), budgets)
        ),
    )
    return contenders.unpack_scores(arrays)


def _dense_probe(job: _Job) -> Scored:
    """All dimensions of the embedding, with L2."""
    settings = EvaluationSettings(seed=job.recipe.seed & 0xFFFF_FFFF)
    arrays = job.training.shared_phase(
        "dense-probe",
        _probe_inputs(job) | {"seed": settings.seed},
        lambda: contenders.pack_scores(
            [dense_probe(job.truth, job.rows.view(job.data.whole_image), settings)]
        ),
    )
    return contenders.unpack_scores(arrays)[0]


def _probe_inputs(job: _Job) -> dict[str, object]:
    """What a probe depends on. The words are not among it, so a job with other words on the same
    data finds the probes of the one before."""
    data = job.recipe.data.SerializeToString(deterministic=True)
    return {"data": data.hex(), "loss": job.truth.loss}


def _numbers(job: _Job) -> Report:
    labels = job.data.labels
    counts: Report = {f"n_{s}": len(labels.rows(s)) for s in ("train", "val", "test")}
    return counts | {"n_concepts": len(job.recipe.concepts)}


def _out_of_fold(job: _Job, folds: FoldFits) -> Report:
    labels = job.data.labels.hot[job.rows.known]
    truth = replace(job.truth, test=job.truth.train, labels=labels)
    scored = score(truth, folds.logits(job.columns), float(np.mean([f.nec for f in folds.fits])))
    counts = bootstrap_counts(len(labels), seed=job.recipe.seed & 0xFFFF_FFFF)
    assert scored.accuracy is not None
    return {
        "out_of_fold": {
            "fidelity": mean_estimate(scored.fidelity, counts).as_dict(),
            "accuracy": mean_estimate(scored.accuracy, counts).as_dict(),
            "nec": scored.nec,
        }
    }


def _student(job: _Job, fit: SparseFit, folds: FoldFits) -> Student:
    training = job.training
    digest = training.blobs.put(training.project, folds.to_bytes())
    means = class_means(job.columns, job.data.labels.hot[job.rows.known])
    return Student(
        weight=fit.weights.astype(np.float32),
        bias=fit.intercepts.astype(np.float32),
        mean=job.scaling.mean,
        std=job.scaling.std,
        bank=job.bank,
        card=concept_card(job.recipe, job.data.labels, job.truth.loss, fit, means)
        | {"fold_fits": digest},
    )
