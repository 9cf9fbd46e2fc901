"""`stillhouse models`: what there is; look at a model, try it, download it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import models_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, run
from stillhouse_client.errors import ServerFault

app = typer.Typer(no_args_is_help=True, help="What can teach and what can see.")
Model = Annotated[str, typer.Argument(help="Name of the model.")]


@app.command("list")
def list_(
    address: Address = "", project: Project = names.DEFAULT_PROJECT, as_json: Json = False
) -> None:
    """List image and language models, encoders and concept sets."""

    async def work(client: AsyncClient) -> dict[str, Any]:
        return {
            "teachers": await client.models.teachers(),
            "encoders": await client.models.encoders(),
            "concept_sets": await client.models.concept_sets(),
        }

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    language = [m for m in found["teachers"] if _is_language(m)]
    output.table(
        ["teacher", "trunk", "#classes", "#px", "licence"],
        [
            (
                names.last(m.name),
                m.image_classifier.trunk or "-",
                str(len(m.image_classifier.classes) or "-"),
                str(m.image_classifier.image_size or "-"),
                m.licence,
            )
            for m in found["teachers"]
            if m not in language
        ],
    )
    if language:
        output.table(
            ["language model", "adapter of", "licence"],
            [(names.last(m.name), m.language_model.base or "-", m.licence) for m in language],
        )
    output.table(
        ["encoder", "#width", "#px", "licence"],
        [
            (names.last(e.name), str(e.embedding_dim), str(e.image_size), e.licence)
            for e in found["encoders"]
        ],
    )
    output.table(
        ["concept set", "kind", "version"],
        [
            (names.last(c.name), "built in" if c.built_in else "yours", c.digest[:12])
            for c in found["concept_sets"]
        ],
    )


@app.command()
def show(
    model: Model,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show a model, loading it: size, limits, and the files of one that a job made."""

    async def work(client: AsyncClient) -> pb.GetTeacherResponse:
        return await client.models.get(model)

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    made = found.model
    rows = [("model", made.name), ("digest", made.digest), ("licence", made.licence)]
    rows += _language_rows(made.language_model) if _is_language(made) else _image_rows(made)
    output.pairs(rows)
    files = sorted(found.files.files.items())
    if files:
        output.table(
            ["file", "#size", "digest"],
            [
                (name, output.size(blob.size_bytes) if blob.size_bytes else "-", blob.digest[:12])
                for name, blob in files
            ],
        )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What the model is given.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a user, through the chat template.")
    ] = False,
    system: Annotated[str, typer.Option(help="With --chat: what the model is told first.")] = "",
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the most probable token each time.")
    ] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus; 1.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=0, help="Most tokens to make; 128.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Try a language model on a prompt; its answer comes as it is made."""
    sampling = language_pb2.Sampling(
        temperature=temperature, top_p=top_p, max_tokens=max_tokens, stop=stop or [], seed=seed
    )
    asked = _conversation(system, prompt) if chat or system else prompt

    async def work(client: AsyncClient) -> teacher_pb2.Generation:
        written = ""
        async for event in client.models.generate(model, asked, sampling=sampling):
            if event.WhichOneof("event") == "generation":
                if not as_json:
                    output.write(event.generation.text.removeprefix(written) + "\n")
                return event.generation
            written += event.text
            if not as_json:
                output.write(event.text)
        raise ServerFault("the answer ended without its last event", hint="try again")

    made = run(work, address, project)
    if as_json:
        output.print_json(made)
        return
    cut = ", cut off" if made.finish_reason == teacher_pb2.FINISH_REASON_LENGTH else ""
    output.note(f"{made.token_count} tokens{cut}")


@app.command()
def download(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Folder to write; what is there goes on.")],
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Download a language model that a job made, as a transformers or peft folder."""
    kept: list[str] = []

    def progress(name: str, done: int, total: int, there: bool) -> None:
        kept.extend([name] if there else [])
        output.note(f"{done} of {total}  {name}{'  (there already)' if there else ''}")

    async def work(client: AsyncClient) -> pb.ProjectModelFiles:
        return await client.models.download(model, folder, progress=progress)

    files = run(work, address, project)
    if as_json:
        output.print_json(
            {"folder": str(folder), "files": sorted(files.files), "kept": kept, "base": files.base}
        )
        return
    output.say(f"wrote {len(files.files) - len(kept)} files to {folder}, kept {len(kept)}")
    if files.base:
        output.note(f"an adapter (peft) for {files.base}")


def _is_language(model: teacher_pb2.Model) -> bool:
    return (
        model.kind == teacher_pb2.MODEL_KIND_LANGUAGE_MODEL
        or model.WhichOneof("spec") == "language_model"
    )


def _language_rows(spec: teacher_pb2.LanguageModelSpec) -> list[tuple[str, str]]:
    rows = [("adapter of", spec.base)] if spec.base else []
    return [
        *rows,
        ("parameters", f"{spec.parameter_count:,}"),
        ("layers", f"{spec.layer_count}, {spec.hidden_size} wide"),
        ("vocabulary", f"{spec.vocab_size:,} (tokenizer {spec.tokenizer_digest[:12]})"),
        ("context", f"{spec.context_length:,} tokens"),
        ("chat", "yes" if spec.has_chat_template else "no template"),
        ("computes in", spec.precision or "decided by its server"),
        ("can", ", ".join(spec.methods)),
    ]


def _image_rows(model: teacher_pb2.Model) -> list[tuple[str, str]]:
    spec = model.image_classifier
    return [
        ("trunk", spec.trunk),
        ("classes", f"{len(spec.classes)}: {', '.join(spec.classes[:30])}"),
        ("image", f"{spec.image_size} px"),
    ]


def _conversation(system: str, prompt: str) -> list[language_pb2.ChatMessage]:
    turns = [("system", system)] if system else []
    return [
        language_pb2.ChatMessage(role=role, content=content)
        for role, content in [*turns, ("user", prompt)]
    ]
