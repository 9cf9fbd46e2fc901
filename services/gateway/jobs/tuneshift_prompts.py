"""Prompts of a tuneshift job: filled templates, or what a model writes after a few examples."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.gateway.jobs.tuneshift_specs import MAX_PROMPT_CHARS, WORD

EXAMPLES = 6
"""Examples in a request for prompts: half of them seeds, half kept ones where there are any."""
WANTED = 6
_FEWEST_CHARS = 4
_MOST_CHARS = min(MAX_PROMPT_CHARS, 1_000)
_ENUMERATED = re.compile(r"^\s*(?:\(?\d{1,3}[.):]|[-*•])\s+")
_QUOTES = "\"'“”‘’` "


@dataclass(frozen=True)
class Filled:
    """A prompt, and the word that was filled into its template; empty without one."""

    prompt: str
    word: str = ""


def filled_prompts(
    seeds: Sequence[str], words: Sequence[str], count: int, seed: int
) -> list[Filled]:
    """Return up to `count` prompts: seeds without `{word}`, then every word in a seeded order.

    No word gets a second template before every word has had one; templates take turns, and no
    prompt comes twice.
    """
    plain = [Filled(one) for one in dict.fromkeys(seeds) if WORD not in one]
    templates = [one for one in dict.fromkeys(seeds) if WORD in one]
    vocabulary = list(dict.fromkeys(words))
    random.Random(f"prompts {seed}").shuffle(vocabulary)
    made = {one.prompt: one for one in plain}
    for turn in range(len(templates)):
        for at, word in enumerate(vocabulary):
            if len(made) >= count:
                return list(made.values())
            prompt = templates[(at + turn) % len(templates)].replace(WORD, word)
            made.setdefault(prompt, Filled(prompt, word))
    return list(made.values())[:count]


def seed_prompts(seeds: Sequence[str], words: Sequence[str], seed: int) -> list[Filled]:
    """Return each seed as one prompt; a template takes one word of its own."""
    draw = random.Random(f"seed words {seed}")
    vocabulary = list(dict.fromkeys(words))
    draw.shuffle(vocabulary)
    found = []
    for at, one in enumerate(dict.fromkeys(seeds)):
        word = vocabulary[at % len(vocabulary)] if WORD in one and vocabulary else ""
        found.append(Filled(one.replace(WORD, word) if word else one, word))
    return found


def draw_examples(
    seeds: Sequence[str], kept: Sequence[str], draw: random.Random, count: int = EXAMPLES
) -> list[str]:
    """Return examples for one request, half from the seeds and half from what was kept."""
    from_kept = min(count // 2, len(kept))
    chosen = draw.sample(list(seeds), min(count - from_kept, len(seeds)))
    chosen += draw.sample(list(kept), from_kept)
    draw.shuffle(chosen)
    return chosen


def request_text(examples: Iterable[str], *, chat: bool, wanted: int = WANTED) -> str:
    """Return what a model is given to write more prompts: an instruction, or a list to go on
    with."""
    lines = [f"{at}. {' '.join(one.split())}" for at, one in enumerate(examples, start=1)]
    listed = "\n".join(lines)
    if not chat:
        return f"{listed}\n{len(lines) + 1}."
    return (
        f"Here are some prompts:\n\n{listed}\n\n"
        f"Write {wanted} new prompts of the same kind about other things, as a numbered list. "
        "Write the prompts alone, without answers."
    )


def parse_prompts(text: str, *, chat: bool) -> list[str]:
    """Return the prompts of a written list.

    In a conversation lines that are not part of a list are remarks, where there is a list at all;
    in a list that was gone on with the first line has lost its number.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    listed = [line for line in lines if _ENUMERATED.match(line)]
    if not chat and lines and not _ENUMERATED.match(lines[0]):
        listed = [lines[0], *listed]
    elif not listed and chat:
        listed = lines
    found = (_ENUMERATED.sub("", line).strip(_QUOTES) for line in listed)
    return [one for one in dict.fromkeys(found) if _FEWEST_CHARS <= len(one) <= _MOST_CHARS]


def normal(prompt: str) -> str:
    """Return what two prompts that are the same have in common."""
    return " ".join(prompt.lower().split())
