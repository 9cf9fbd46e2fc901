"""`stillhouse models`: teachers, encoders and concept sets."""

from __future__ import annotations

from typing import Any

import typer

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, run

app = typer.Typer(no_args_is_help=True, help="What can teach and what can see.")


@app.command("list")
def list_(
    address: Address = "", project: Project = names.DEFAULT_PROJECT, as_json: Json = False
) -> None:
    """List teachers, encoders and concept sets."""

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
        ],
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
