"""A tiny random Llama with a tokenizer of its own, and the service around it, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import torch
from stillhouse.common.v1 import language_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.interceptors import ErrorInterceptor
from services.common.model_records import LanguageModelRecord
from services.teacher.language.calls import LanguageCalls
from services.teacher.registry import Registry
from services.teacher.servicer import TeacherServicer
from services.teacher.settings import TeacherSettings
from services.torch_common.language.files import ModelFiles, ModelSource
from services.torch_common.language.loading import LoadedLanguageModel, load_folder

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = "the quick brown fox jumps over the lazy dog and the small cat sat on a mat near the door. "
CATALOGUE = """
[entries.tiny]
kind = "language-model"
loader = "transformers"
licence = "mine"
source = "file:tiny"

[entries.far]
kind = "language-model"
loader = "openai"
licence = "theirs"
url = "{url}"
remote_model = "{remote}"
context_length = 512
"""


def write_tiny(folder: Path, *, seed: int = 0, layers: int = 2, bos: bool = False) -> Path:
    """Save a random Llama (hidden 32, vocabulary about 300, context 128) and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=304,  # padded above the tokenizer's
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load_tiny(folder: Path) -> LoadedLanguageModel:
    """Load a folder in float32."""
    return load_folder(ModelFiles("tiny", folder, "mine", ""), precision="float32")


def write_adapter(folder: Path, base: Path, *, seed: int = 1) -> Path:
    """Save a random LoRA adapter on the model in `base`."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=2, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(load_tiny(base).model, config)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    tuned.save_pretrained(str(folder))
    return folder


def publish(blobs: BlobStore, folder: Path, model_id: str, **fields: str) -> LanguageModelRecord:
    """Put a folder into the blob store as a project's model."""
    names = (".safetensors", ".json", ".jinja")
    files = {
        path.name: blobs.put("default", path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.name.endswith(names)
    }
    form = "adapter" if fields.get("base") else "checkpoint"
    record = LanguageModelRecord(form, files, "0" * 64, "0" * 64, **fields)  # type: ignore[arg-type]
    blobs.put_ref("default", f"models/{model_id}", record.to_bytes())
    return record


@dataclass
class World:
    """A running service, its parts, and a client's stub."""

    stub: teacher_pb2_grpc.TeacherServiceStub
    blobs: BlobStore
    language: LanguageCalls
    folder: Path


@asynccontextmanager
async def world(
    folder: Path, *, url: str = "http://127.0.0.1:9", remote: str = "far-away", **more: object
) -> AsyncIterator[World]:
    """The teacher service in this process, with `tiny` in its catalogue, computing in float32."""
    (folder / "mine.toml").write_text(CATALOGUE.format(url=url, remote=remote))
    if not (folder / "tiny").exists():
        write_tiny(folder / "tiny")
    given = {"cache_dir": folder / "cache", "precision": "float32", "preload": "tiny", **more}
    settings = TeacherSettings(catalogue=folder / "mine.toml", **given)  # type: ignore[arg-type]
    blobs = BlobStore(str(folder / "blobs"))
    catalogue = load_catalogue([folder / "mine.toml"])
    registry = Registry(settings, catalogue, blobs)
    source = ModelSource(catalogue, blobs, settings.cache_dir)
    language = LanguageCalls(settings, source, registry.device, blobs)
    servicer = TeacherServicer(settings, registry, blobs, language)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield World(teacher_pb2_grpc.TeacherServiceStub(channel), blobs, language, folder)  # type: ignore[no-untyped-call]
    await server.stop(0)
    await servicer.close()


def name(model_id: str) -> str:
    """A model's full name."""
    return f"projects/default/models/{model_id}"


def said(text: str) -> language_pb2.Prompt:
    """A prompt of plain text."""
    return language_pb2.Prompt(text=text)


def scored(prompt: str, answer: str, **more: object) -> teacher_pb2.ScoreItem:
    """An item of Score."""
    return teacher_pb2.ScoreItem(prompt=said(prompt), text=answer, **more)  # type: ignore[arg-type]
