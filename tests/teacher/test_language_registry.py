"""Which language models stay in memory, and what an adapter costs there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.device import Device
from services.common.errors import NotFound, Precondition
from services.teacher.language import registry as registry_module
from services.teacher.language.registry import LanguageRegistry
from services.teacher.settings import TeacherSettings
from services.torch_common.language.files import ModelFiles, ModelSource
from services.torch_common.language.loading import LoadedLanguageModel, load_folder
from tests.teacher.language_models import publish, write_adapter, write_tiny
from tests.torch_common.other_threads import one_thread_elsewhere

THREADS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry")
    for seed in range(3):
        write_tiny(path / f"base{seed}", seed=seed)
        write_adapter(path / f"lora{seed}", path / "base0", seed=seed + 10)
    return path


@pytest_asyncio.fixture
async def registry(
    folder: Path, tmp_path: Path
) -> AsyncIterator[tuple[LanguageRegistry, BlobStore]]:
    settings = TeacherSettings(
        cache_dir=tmp_path / "cache",
        threads=THREADS,
        precision="float32",
        max_language_models=2,
        max_adapters=2,
    )
    blobs = BlobStore(str(tmp_path / "blobs"))
    for seed in range(3):
        publish(blobs, folder / f"base{seed}", f"base{seed}")
        publish(blobs, folder / f"lora{seed}", f"lora{seed}", base="base0")
    source = ModelSource(load_catalogue(), blobs, settings.cache_dir)
    with ThreadPoolExecutor(1) as executor:
        yield LanguageRegistry(settings, source, Device(executor)), blobs


def _names(registry: LanguageRegistry) -> list[str]:
    return [key[1] for key in registry._served]


async def _touch(registry: LanguageRegistry, *names: str) -> None:
    for one in names:
        async with registry.use("default", one):
            pass


async def test_the_least_recently_used_leaves(registry) -> None:  # type: ignore[no-untyped-def]
    models, _ = registry
    await _touch(models, "base0", "base1", "base0", "base2")
    assert _names(models) == ["base0", "base2"]
    async with models.use("default", "base0"):
        await _touch(models, "base1")
        assert _names(models) == ["base0", "base1"]


async def test_a_load_computes_with_the_services_threads(registry, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def noting(files: ModelFiles, **how: Any) -> LoadedLanguageModel:
        seen.append(torch.get_num_threads())
        return load_folder(files, **how)

    monkeypatch.setattr(registry_module, "load_folder", noting)
    with one_thread_elsewhere() as seen:
        await _touch(registry[0], "base0")
    assert seen == [THREADS]


async def test_a_load_goes_on_where_its_callers_leave_and_serves_those_who_come(  # type: ignore[no-untyped-def]
    registry, monkeypatch
) -> None:
    begun, go_on = asyncio.Semaphore(0), threading.Event()
    loop, models = asyncio.get_running_loop(), registry[0]

    def slow(files: ModelFiles, **how: Any) -> LoadedLanguageModel:
        loop.call_soon_threadsafe(begun.release)
        go_on.wait(60)
        return load_folder(files, **how)

    monkeypatch.setattr(registry_module, "load_folder", slow)
    leaves = asyncio.create_task(_touch(models, "base0"))
    await begun.acquire()
    leaves.cancel()
    await asyncio.wait([leaves])
    comes = asyncio.create_task(_touch(models, "lora0", "base0"))
    await asyncio.sleep(0.2)  # for a second load of the base, were there one
    go_on.set()
    await comes
    assert begun.locked(), "the base was loaded twice"
    assert set(_names(models)) == {"base0", "lora0"}


async def test_what_is_in_use_stays_with_what_stands_on_it(registry) -> None:  # type: ignore[no-untyped-def]
    models, _ = registry
    async with models.use("default", "lora0"):
        await _touch(models, "base1", "base2")
        assert "base0" in _names(models)
        assert "lora0" in _names(models)
    await _touch(models, "base1", "base2", "base1")
    assert "lora0" not in _names(models)


async def test_adapters_are_small_and_few(registry) -> None:  # type: ignore[no-untyped-def]
    models, _ = registry
    async with models.use("default", "base0") as base:
        model = base.loaded.model

        def parameters() -> int:
            return sum(weight.numel() for weight in model.parameters())

        alone = parameters()
        for count, one in enumerate(("lora0", "lora1"), start=1):
            async with models.use("default", one) as tuned:
                assert tuned.loaded.model is model
                assert parameters() == alone + count * 448  # rank 2 on two layers' q and v
        await _touch(models, "lora0", "lora2")
        assert set(_names(models)) == {"base0", "lora0", "lora2"}
        assert parameters() == alone + 2 * 448
        await _touch(models, "lora1")  # comes again after it left
        assert set(_names(models)) == {"base0", "lora2", "lora1"}


async def test_a_base_that_was_published_again_takes_its_adapters_along(registry, folder) -> None:  # type: ignore[no-untyped-def]
    models, blobs = registry
    async with models.use("default", "lora0") as tuned:
        before = tuned.loaded.digest
    publish(blobs, folder / "base2", "base0")
    async with models.use("default", "lora0") as tuned:
        assert tuned.loaded.digest != before
    assert set(_names(models)) == {"base0", "lora0"}


async def test_unknown_models_and_bases(registry, folder) -> None:  # type: ignore[no-untyped-def]
    models, blobs = registry
    publish(blobs, folder / "lora0", "double", base="lora1")
    with pytest.raises(Precondition, match="is an adapter itself"):
        await _touch(models, "double")
    publish(blobs, folder / "lora0", "orphan", base="bass0")
    for one in ("orphan", "bass0"):
        with pytest.raises(NotFound, match="did you mean base0"):
            await _touch(models, one)
    await _touch(models, "base0")
