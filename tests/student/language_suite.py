"""A tiny random Llama with a byte tokenizer as a catalogue entry, and data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.student.v1 import student_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import services.torch_common  # noqa: F401  declares what transformers' import needs
from services.common.blobs import BlobStore
from services.common.targets import SparseTargets, TargetShard
from services.common.texts import TextRecord, pack_records
from services.torch_common.language.packing import Encoder, PackedSequence, pack

PROJECT = "default"
MODEL = "tiny-llama"
BROKEN = "tiny-nan"
CONTEXT = 96
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def make_tokenizer():
    """One id per byte and an end-of-text token."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": 0} | {letter: at + 1 for at, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(*, layers: int = 3, seed: int = 0, vocab: int = 264):
    """A random Llama, hidden 32, whose vocabulary is padded beyond the tokenizer's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def make_teacher(*, sure: float = 30):
    """A random Llama that is sure of what it says."""
    teacher = make_model(layers=2, seed=7)
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(sure)
    return teacher


def make_catalogue(folder: Path, **options) -> Path:
    """Write the model's folder, one of a model whose weights are NaN, and a catalogue of both."""
    broken = make_model(**options)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    entries = []
    for name, model in ((MODEL, make_model(**options)), (BROKEN, broken)):
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
        entries.append(
            f'[entries.{name}]\nkind = "language-model"\nloader = "transformers"\n'
            f'licence = "CC0-1.0"\nsource = "file:{folder / name}"\n'
        )
    path = folder / "catalogue.toml"
    path.write_text("\n".join(entries))
    return path


def texts(count: int = 12, *, split: str = "train") -> list[TextRecord]:
    """Sentences of a simple pattern, so that a little training helps."""
    rng = np.random.default_rng(1 if split == "train" else 2)
    words = ["red", "blue", "cat", "dog", "sun", "sea"]
    return [
        TextRecord(f"{split}-{at}", split, text=" ".join(rng.choice(words, 12)) + ".")
        for at in range(count)
    ]


def answers(count: int = 10) -> list[TextRecord]:
    """Prompts with answers of several lengths."""
    return [
        TextRecord(f"q-{at}", prompt=f"{at} + {at} =", answer=f" {2 * at}" + "!" * (at % 4))
        for at in range(count)
    ]


def questions(count: int = 6) -> list[TextRecord]:
    """Choices, three questions to a group, and what a verifier compares with."""
    return [
        TextRecord(
            f"c-{at}",
            "test",
            prompt=f"{at} + {at} =",
            reference=str(2 * at),
            choices=(f" {2 * at}", " red", " blue"),
            group=f"g-{at // 3}",
        )
        for at in range(count)
    ]


def put_records(blobs: BlobStore, records) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=blobs.put(PROJECT, pack_records(records)))


def sequences_of(records, length: int = 32) -> list[PackedSequence]:
    return pack(records, Encoder(make_tokenizer()), length).sequences


@torch.no_grad()
def teach(teacher, sequence: PackedSequence, kind: str, *, size: int = 24) -> SparseTargets:
    """Draws or the most probable ids of a teacher for each target of a sequence."""
    logits = teacher(torch.from_numpy(sequence.tokens.astype(np.int64))[None]).logits[0]
    p = logits[:-1][torch.from_numpy(sequence.is_target[1:] > 0)].double().softmax(-1)
    if kind == "sampled":
        drawn = np.random.default_rng(0).multinomial(size, p.numpy())
        row, ids = drawn.nonzero()
        values = drawn[row, ids]
    else:
        ids = np.sort(p.topk(size).indices.numpy(), axis=1).ravel()
        row = np.repeat(np.arange(len(p)), size)
        values = p.log().numpy()[row, ids]
    return SparseTargets(sequence.tokens, sequence.is_target, ids, row, values)


def put_targets(
    blobs: BlobStore, sequences, kind: str, *, temperature: float = 1.0, teacher=None
) -> items_pb2.BlobRef:
    teacher = teacher or make_teacher()
    taught = [teach(teacher, one, kind) for one in sequences]
    data = TargetShard.encode(taught, kind=kind, temperature=temperature)
    return items_pb2.BlobRef(digest=blobs.put(PROJECT, data))


def training(**options) -> language_pb2.LanguageTraining:
    defaults = {
        "max_steps": 12,
        "batch_sequences": 4,
        "sequence_length": 32,
        "learning_rate": 1e-2,
        "precision": "float32",
        "seed": 5,
    }
    return language_pb2.LanguageTraining(**{**defaults, **options})


def request(run_id: str, **recipe) -> student_pb2.TrainRequest:
    return student_pb2.TrainRequest(
        project=PROJECT,
        run_id=run_id,
        language=student_pb2.LanguageRecipe(**{"student": MODEL, "training": training(), **recipe}),
    )
