"""A student that learns from a teacher with another tokenizer, on a tiny random model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from stillhouse.common.v1 import items_pb2, language_pb2
from tokenizers import Tokenizer, models, pre_tokenizers

from services.common.errors import InvalidInput, Precondition
from services.common.targets import TargetShard
from services.common.texts import TextRecord
from services.student.language.data import TargetBank, collate
from services.student.language.tokenizers import AlignedBank, lay
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from services.torch_common.language.packing import Encoder, pack
from tests.student import language_suite as suite

ULD = language_pb2.LANGUAGE_LOSS_ULD
RECORDS = [
    TextRecord(f"q-{at}", prompt=f"{at} + {at} =", answer=f" {2 * at}" + "!" * (at % 5))
    for at in range(8)
] + [TextRecord("long", prompt="why?", answer="!!!!!!!!!!")]


def other_encoder() -> Encoder:
    """Bytes from the last on, pairs of marks as one token, and an end-of-text token."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocab = {letter: at for at, letter in enumerate(letters)} | {"!!": 256, "<end>": 257}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("!", "!")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>"))


def stored(records, *, named=True, kind="top_k") -> bytes:
    """The targets of records by a teacher with its own tokenizer and a larger vocabulary."""
    teacher = suite.make_model(layers=1, seed=7, vocab=280)
    taught = []
    for one in pack(records, other_encoder(), 32).sequences:
        found = suite.teach(teacher, one, kind, size=6)
        taught.append(replace(found, record=one.record if named else b""))
    return TargetShard.encode(taught, kind=kind)


def bank_of(data: bytes) -> AlignedBank:
    return AlignedBank(TargetBank([TargetShard.from_bytes(data)]))


def test_answers_are_aligned_from_their_first_token_to_the_end_of_the_shorter():
    shard = TargetShard.from_bytes(stored(RECORDS))
    theirs = shard.sequence(len(shard) - 1)  # five pairs and the end
    assert len(theirs.tail) == 6
    cut, longer = lay(theirs, 4), lay(theirs, 11)
    assert cut.row.tolist() == theirs.row[: 4 * 6].tolist()
    assert cut.tail.tolist() == theirs.tail[:4].tolist()
    assert longer.row.tolist() == theirs.row.tolist()
    assert longer.weight.tolist() == theirs.weight.tolist()
    assert longer.tail.tolist() == [*theirs.tail, *[1] * 5]


def test_sequences_find_targets_by_their_record_alone():
    first, second = bank_of(stored(RECORDS)), bank_of(stored(RECORDS[::-1]))
    mine = pack(RECORDS, Encoder(suite.make_tokenizer()), 32).sequences
    for one, record in zip(mine, RECORDS, strict=True):
        assert one.record == bytes.fromhex(record.digest)
        found, again = first.targets_of(one), second.targets_of(one)
        theirs = other_encoder().ids(record.answer).tolist()
        assert found.tokens.tolist()[-len(theirs) - 1 :] == [*theirs, 257]
        assert found.digest == again.digest
        assert len(found.tail) == one.target_count
    renamed = pack([replace(RECORDS[0], record_id="x")], Encoder(suite.make_tokenizer()), 32)
    assert first.targets_of(renamed.sequences[0]) is None
    plain = suite.sequences_of(suite.texts(1))[0]
    assert first.targets_of(plain) is None
    batch = collate([mine[0], plain, mine[8]], first)
    assert batch.is_distilled.sum() == mine[0].target_count + mine[8].target_count
    assert int(batch.targets.row.max()) == mine[0].target_count + 5


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    suite.make_catalogue(folder)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def run(home, blobs):
    around = Surroundings(cache_dir=home / "cache", catalogue=home / "catalogue.toml")

    def go(run_id, records, data, **options):
        asked = suite.request(
            run_id,
            text_shards=[suite.put_records(blobs, records)] if records else [],
            target_shards=[items_pb2.BlobRef(digest=blobs.put(suite.PROJECT, data))],
            training=suite.training(loss=ULD, **options),
            tokenizer_digest="0" * 64,  # the teacher's
        )
        folder = RunDir.of(home / "runs", suite.PROJECT, run_id)
        folder.create(asked)
        made = Training(suite.PROJECT, blobs, folder.next_writer(), lambda: None, around)
        result = train(made, asked).language
        return json.loads(blobs.get(suite.PROJECT, result.report.digest))

    return go


@torch.no_grad()
def by_loops(records) -> float:
    """0.4 cross-entropy of all answer tokens + 0.6 ULD of the aligned ones, record by record."""
    student, teacher = suite.make_model(), suite.make_model(layers=1, seed=7, vocab=280)
    entropies, differences = [], []
    for record in records:
        q, labels = answer_probabilities(student, Encoder(suite.make_tokenizer()), record)
        p, _ = answer_probabilities(teacher, other_encoder(), record)
        entropies += [-float(row[label].log()) for row, label in zip(q, labels, strict=True)]
        for mine, theirs in zip(q, p, strict=False):
            best = sorted(theirs.tolist(), reverse=True)[:6] + [0.0] * (len(mine) - 6)
            pairs = zip(sorted(mine.tolist(), reverse=True), best, strict=True)
            differences.append(sum(abs(a - b) for a, b in pairs))
    return 0.4 * float(np.mean(entropies)) + 0.6 * float(np.mean(differences))


def answer_probabilities(model, encoder, record):
    """Of each token of the answer and its end: the model's softmax, and the token."""
    before = encoder.ids(record.prompt).tolist()
    answer = [*encoder.ids(record.answer).tolist(), encoder.eos_id]
    logits = model(torch.tensor([before + answer])).logits[0]
    return logits[len(before) - 1 : -1].double().softmax(-1), answer


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_student_learns_from_a_teacher_of_another_vocabulary(run):
    # The teacher has no targets of the first record, as if it were too long in its tokens.
    report = run("learns", RECORDS, stored(RECORDS[1:]), batch_sequences=8, max_steps=16)
    losses = [point["loss"] for point in report["curves"]]
    assert losses[0] == pytest.approx(by_loops(RECORDS[1:]), abs=1e-3)
    assert losses[-1] < losses[0] - 0.3
    assert report["skipped"] == ["1 of 9 records have no targets and are left out"]
    assert report["targets"]["tokens"] > 0


def test_what_cannot_be_aligned_is_refused(run):
    both = [*RECORDS, TextRecord("t", text="a plain text of some length")]
    cases = [
        ("texts", both, stored(both), Precondition, "prompts with answers"),
        ("unnamed", RECORDS, stored(RECORDS, named=False), Precondition, "none of 9"),
        ("others", RECORDS[:4], stored(RECORDS[4:]), Precondition, "none of 4"),
        ("drawn", RECORDS, stored(RECORDS, kind="sampled"), Precondition, "needs top-k"),
        ("recordless", [], stored(RECORDS), InvalidInput, "text_shards: ULD"),
    ]
    for name, records, data, error, words in cases:
        with pytest.raises(error, match=words):
            run(f"refused-{name}", records, data)
