"""Per class the top concepts with example regions, fetched from the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from stillhouse.gateway.v1 import students_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.errors import ClientError
from stillhouse_client.report import thumbnails

FOR = 4
"""Concepts shown per class that speak for it."""
AGAINST = 2
"""Concepts shown per class that speak against it."""
EXAMPLES = 3
_FETCHES = 8


@dataclass
class ConceptCard:
    """One concept of a class."""

    concept: str
    weight: float
    influence: float
    share: float
    """Size of the influence over that of the class's largest, 0 to 1."""
    pictures: list[bytes] = field(default_factory=list)
    """JPEG thumbnails with the region marked."""


@dataclass
class ClassCard:
    """One class with its top concepts."""

    label: str
    concept_count: int
    concepts: list[ConceptCard]


def chosen(
    concepts: Sequence[students_pb2.ConceptWeight],
) -> list[students_pb2.ConceptWeight]:
    """Return the concepts to show, by influence: those that speak for the class and are in its
    photos more than in others, then those that speak against it and are in its photos less."""
    ranked = sorted((c for c in concepts if c.influence > 0), key=lambda c: -c.influence)
    up = [c for c in ranked if c.weight > 0]
    down = [c for c in ranked if c.weight < 0]
    return up[:FOR] + down[:AGAINST]


class Gallery:
    """Fetches examples and images, each image once."""

    def __init__(self, client: AsyncClient, student: str) -> None:
        self._client = client
        self._student = student
        self._slots = asyncio.Semaphore(_FETCHES)
        self._images: dict[str, asyncio.Task[bytes | None]] = {}

    async def cards(self, classes: Sequence[students_pb2.ClassConcepts]) -> list[ClassCard]:
        """Return a card per class."""
        against = {c.concept for e in classes for c in chosen(e.concepts) if c.weight < 0}
        anywhere = await self._pictures("", sorted(against))
        return list(await asyncio.gather(*(self._card(entry, anywhere) for entry in classes)))

    async def _card(
        self, entry: students_pb2.ClassConcepts, anywhere: dict[str, list[bytes]]
    ) -> ClassCard:
        shown = chosen(entry.concepts)
        most = max((c.influence for c in shown), default=1.0)
        own = await self._pictures(entry.label, [c.concept for c in shown if c.weight > 0])
        concepts = [
            ConceptCard(
                c.concept,
                c.weight,
                c.influence,
                c.influence / most,
                (own if c.weight > 0 else anywhere)[c.concept],
            )
            for c in shown
        ]
        return ClassCard(entry.label, len(entry.concepts), concepts)

    async def _pictures(self, label: str, concepts: list[str]) -> dict[str, list[bytes]]:
        """Return pictures by concept: of photos of the class, or of any where it is empty."""
        found: dict[str, list[bytes]] = {concept: [] for concept in concepts}
        if not concepts:
            return found
        try:
            async with self._slots:
                examples = await self._client.students.examples(
                    self._student, concepts, label=label, per_concept=EXAMPLES
                )
        except ClientError:
            return found
        for example in examples:
            data = await self._image(example.item.digest)
            picture = thumbnails.region(data, example.box) if data else None
            if picture and example.presence > 0 and example.concept in found:
                found[example.concept].append(picture)
        return found

    async def _image(self, digest: str) -> bytes | None:
        if digest not in self._images:
            self._images[digest] = asyncio.create_task(self._fetch(digest))
        return await self._images[digest]

    async def _fetch(self, digest: str) -> bytes | None:
        try:
            async with self._slots:
                return await self._client.blobs.read(digest)
        except ClientError:
            return None
