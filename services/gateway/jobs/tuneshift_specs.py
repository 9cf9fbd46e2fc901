"""What a tuneshift job's specification must be, and what its empty fields stand for."""

from __future__ import annotations

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import InvalidInput
from services.common.sandbox import Sandbox
from services.common.verifiers import check_verifier, needs_reference
from services.gateway.jobs.checks import owned
from services.gateway.jobs.language_specs import (
    check_bounds,
    check_datasets,
    check_model_id,
    check_sampling,
    check_training,
)

WORD = "{word}"
MAX_SEEDS = 64
MAX_WORDS = 100_000
MAX_PROMPT_CHARS = 8_000
MAX_WORD_CHARS = 200
DEFAULT_ROUNDS = 5
DEFAULT_PROMPTS = 128
DEFAULT_OFF_DOMAIN = 0.3
ARMS = ("no_filter", "random_filter", "seeds_only")
TAUS = (1.1, 1.25, 1.5, 2.0, 3.0)
_LOSSES = (
    language_pb2.LANGUAGE_LOSS_UNSPECIFIED,
    language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY,
)
_BOUNDS = {
    "rounds": (0, 1_000),
    "prompts_per_round": (0, 10_000),
    "target_examples": (0, 1_000_000),
    "token_budget": (0, 1e12),
    "training_seeds": (0, 32),
    "off_domain_share": (-1e9, 0.95),
}
_FILTER = {
    "tau": (-1e6, 1e6),
    "confident_share": (0, 1),
    "max_perplexity": (0, 1e12),
    "duplicate_similarity": (0, 1),
}


def check_tuneshift_spec(
    project: str, spec: pb.TuneShiftJobSpec, *, sandbox: Sandbox | None = None
) -> None:
    """Raise InvalidInput for what is malformed or reaches into another project."""
    for field in ("base", "tuned", "target"):
        owned(project, getattr(spec, field), "models", field)
    for field in ("generator", "style_model"):
        if getattr(spec, field):
            owned(project, getattr(spec, field), "models", field)
    if spec.base == spec.tuned:
        raise InvalidInput(
            "tuned: is the same model as base, so nothing was learned", field="tuned"
        )
    _check_prompts(spec)
    if spec.off_domain_dataset:
        owned(project, spec.off_domain_dataset, "datasets", "off_domain_dataset")
    check_datasets(project, spec.evaluation_datasets, spec.replay_dataset)
    check_bounds(spec, _BOUNDS)
    check_bounds(spec.filter, _FILTER, "filter.")
    _check_loss(spec)
    check_sampling(spec.sampling)
    if spec.HasField("verifier"):
        check_verifier(spec.verifier, sandbox=sandbox)
        if needs_reference(spec.verifier):
            raise InvalidInput(
                "verifier: the prompts of a tuneshift job have no reference to compare with; "
                "use a regex with a pattern",
                field="verifier",
            )
    unknown = [arm for arm in spec.arms if arm not in ARMS]
    if unknown:
        raise InvalidInput(f"arms: {unknown[0][:40]!r} is none of {', '.join(ARMS)}", field="arms")
    check_model_id(
        model_id_of(spec), spec.base, spec.tuned, spec.target, spec.generator, spec.style_model
    )


def model_id_of(spec: pb.TuneShiftJobSpec) -> str:
    """Return the last part of the new model's name."""
    target, tuned = (name.rsplit("/", 1)[-1] for name in (spec.target, spec.tuned))
    return spec.model_id or f"{target[:31]}-{tuned[:31]}"


def rounds_of(spec: pb.TuneShiftJobSpec) -> int:
    """Return how many rounds there are at most."""
    return spec.rounds or DEFAULT_ROUNDS


def prompts_of(spec: pb.TuneShiftJobSpec) -> int:
    """Return how many prompts a round has."""
    return spec.prompts_per_round or DEFAULT_PROMPTS


def off_domain_share(spec: pb.TuneShiftJobSpec) -> float:
    """Return the share of a round's prompts that are off-domain."""
    if not spec.off_domain_dataset or spec.off_domain_share < 0:
        return 0.0
    return spec.off_domain_share or DEFAULT_OFF_DOMAIN


def arms_of(spec: pb.TuneShiftJobSpec) -> list[str]:
    """Return the arms to train, the job's own first."""
    found = ["tuneshift"]
    if spec.ablations:
        found += list(dict.fromkeys(spec.arms)) or list(ARMS)
    if spec.ablations and spec.style_model:
        found.append("style")
    if spec.tau_arms:
        found += [f"tau_{tau:g}" for tau in TAUS]
    return found


def _check_prompts(spec: pb.TuneShiftJobSpec) -> None:
    seeds = spec.seed_prompts
    if not 1 <= len(seeds) <= MAX_SEEDS:
        raise InvalidInput(
            f"seed_prompts: 1 to {MAX_SEEDS} are needed, not {len(seeds)}", field="seed_prompts"
        )
    for at, seed in enumerate(seeds):
        if not seed.strip() or len(seed) > MAX_PROMPT_CHARS:
            raise InvalidInput(
                f"seed_prompts[{at}]: 1 to {MAX_PROMPT_CHARS:,} characters",
                field=f"seed_prompts[{at}]",
            )
    if len(spec.words) > MAX_WORDS:
        raise InvalidInput(f"words: at most {MAX_WORDS:,}", field="words")
    if any(not word.strip() or len(word) > MAX_WORD_CHARS for word in spec.words):
        raise InvalidInput(f"words: 1 to {MAX_WORD_CHARS} characters each", field="words")
    with_word = [seed for seed in seeds if WORD in seed]
    if bool(with_word) != bool(spec.words):
        missing = f"no seed prompt holds {WORD}" if spec.words else f"{WORD} needs `words`"
        raise InvalidInput(f"words: {missing}", field="words")


def _check_loss(spec: pb.TuneShiftJobSpec) -> None:
    """Refuse before the rounds what training would refuse after them."""
    check_training(spec.training)
    if spec.training.loss not in _LOSSES:
        raise InvalidInput(
            "training.loss: the answers are learned word for word, so the loss is cross-entropy",
            field="training.loss",
        )
    stops = spec.training.patience and not (spec.ablations or spec.tau_arms)
    if stops and not spec.evaluation_datasets:
        raise InvalidInput(
            "training.patience: stopping early needs evaluation_datasets with texts",
            field="training.patience",
        )
