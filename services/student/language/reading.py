"""What a language recipe trains on, read from the blob store and checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stillhouse.student.v1 import student_pb2

from services.common.errors import Precondition
from services.student.language.course import Teach
from services.student.language.data import (
    TargetBank,
    check_sequences,
    read_records,
    read_targets,
)
from services.student.language.on_policy import open_teacher, pack_prompts
from services.student.language.options import TrainingOptions
from services.student.language.students import LanguageStudent
from services.student.language.tokenizers import AlignedBank, check_answers, matched
from services.student.recipes import Training
from services.torch_common.language.packing import Packed, PackedSequence, pack


@dataclass(frozen=True)
class TrainingData:
    """What is trained on."""

    sequences: list[PackedSequence]
    replay: list[PackedSequence]
    bank: TargetBank | None
    skipped: list[str]
    teach: Teach | None = None


def read_data(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    options: TrainingOptions,
    student: LanguageStudent,
) -> TrainingData:
    """The sequences to train on. Raises InvalidInput, Precondition before any work is done."""
    if recipe.HasField("on_policy"):
        return _read_prompts(training, recipe, options, student)
    blobs, project = training.blobs, training.project
    longest = min(options.sequence_length, student.context_length)
    encoder = student.loaded.encoder
    texts = read_records(blobs, project, recipe.text_shards, field="text_shards")
    packed = pack(texts, encoder, longest)
    bank = read_targets(blobs, project, recipe.target_shards, field="target_shards")
    found, skipped = packed.sequences, list(packed.skipped)
    if bank is not None and options.loss.divergence == "uld":
        check_answers(texts)
        _check_bank(bank, options)
        bank = AlignedBank(bank)
        found, missing = matched(found, bank)
        skipped += missing
    elif bank is not None:
        _check_bank(bank, options)
        stored = bank.sequences(student.vocab_size)
        found = _matched(found, bank) if found else stored
    check_sequences(found, student.context_length, "text_shards")
    replay = _read_replay(training, recipe, options, student)
    return TrainingData(found, replay.sequences, bank, skipped + replay.skipped)


def _read_prompts(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    options: TrainingOptions,
    student: LanguageStudent,
) -> TrainingData:
    """The prompts to answer, and the teacher that scores answers."""
    blobs, project, encoder = training.blobs, training.project, student.loaded.encoder
    records = read_records(blobs, project, recipe.text_shards, field="text_shards")
    found, skipped = pack_prompts(records, encoder, student.context_length)
    check_sequences(found, student.context_length, "text_shards")
    replay = _read_replay(training, recipe, options, student)
    teacher = open_teacher(
        recipe,
        encoder,
        student.loaded.tokenizer_digest,
        address=training.surroundings.teacher_address,
        tls=training.surroundings.tls,
        max_message_bytes=training.surroundings.max_message_bytes,
        temperature=options.loss.temperature,
        dtype=student.dtype,
        seed=options.seed,
        ranks=training.ranks,
    )
    known = frozenset(one.digest for one in replay.sequences)
    teach = replace(teacher, replay=known)
    return TrainingData(found, replay.sequences, None, skipped + replay.skipped, teach)


def _read_replay(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    options: TrainingOptions,
    student: LanguageStudent,
) -> Packed:
    """The replay's sequences."""
    refs = recipe.replay_shards
    records = read_records(training.blobs, training.project, refs, field="replay_shards")
    longest = min(options.sequence_length, student.context_length)
    return pack(records, student.loaded.encoder, longest)


def _check_bank(bank: TargetBank, options: TrainingOptions) -> None:
    """Raise Precondition where stored targets cannot serve the loss."""
    loss = options.loss
    if loss.divergence is None:
        return
    if bank.kind == "sampled" and loss.divergence != "forward_kl":
        raise Precondition(
            f"sampled targets estimate forward KL alone; {loss.divergence} needs top-k targets",
            differences={"targets": f"sampled, for {loss.divergence}"},
        )
    if bank.temperature != loss.temperature:
        raise Precondition(
            f"the targets are of temperature {bank.temperature:g}, the loss asks for "
            f"{loss.temperature:g}",
            differences={"temperature": f"{bank.temperature:g} != {loss.temperature:g}"},
        )


def _matched(sequences: list[PackedSequence], bank: TargetBank) -> list[PackedSequence]:
    """The sequences, if the bank knows all of them. Raises Precondition."""
    unknown = sum(not bank.knows(one.digest) for one in sequences)
    if unknown:
        raise Precondition(
            f"{unknown} of {len(sequences)} sequences have no targets; give the targets the same "
            "records and sequence_length",
            differences={"sequences": f"{unknown} without targets"},
        )
    return sequences
