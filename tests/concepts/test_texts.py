"""The memory of text embeddings, and what a text may be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.common.device import Device
from services.common.errors import InvalidInput
from services.concepts.texts import Texts, check_texts


@pytest.mark.parametrize("texts", [[], [""], [" \n"], ["x" * 1001], ["a"] * 4097])
def test_bad_texts_are_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_texts(texts)


async def test_a_text_is_computed_once_and_the_least_used_is_forgotten() -> None:
    asked: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[len(text)] for text in texts], np.float16)

    with ThreadPoolExecutor(1) as executor:
        texts = Texts(embed, Device(executor), name="texts", keep=2)
        rows = await texts.embed(["a", "bbb", "a"])
        np.testing.assert_array_equal(rows, [[1], [3], [1]])
        assert asked == ["a", "bbb"]
        await texts.embed(["a"])
        await texts.embed(["cc"])
        assert asked == ["a", "bbb", "cc"]
        await texts.embed(["a", "bbb"])
        assert asked == ["a", "bbb", "cc", "bbb"]


async def test_many_texts_come_back_in_order() -> None:
    words = [f"{n}" for n in range(1000)]
    with ThreadPoolExecutor(1) as executor:
        texts = Texts(
            lambda part: np.array([[int(t)] for t in part], np.float32),
            Device(executor),
            name="texts",
            keep=9,
        )
        np.testing.assert_array_equal((await texts.embed(words))[:, 0], np.arange(1000))
