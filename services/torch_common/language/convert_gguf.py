"""Turn a GGUF file into a transformers folder with safetensors, once, in a process of its own.

    python -m services.torch_common.language.convert_gguf SRC.gguf FOLDER

Quantised tensors become float32. The folder is written under another name and renamed when the
model is whole and, where ``--golden`` is given, its logits were right. Prints one JSON line: digest
and golden logits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import services.torch_common  # noqa: F401  declares what transformers' import needs
from services.common.weights import content_digest
from services.torch_common.golden import COUNT, GoldenMismatch
from services.torch_common.threads import set_threads

_TOLERANCE = 2e-3
_TOKENS = 16


def golden_ids(vocab_size: int) -> torch.Tensor:
    """A fixed prompt, int64 [1, 16]: ids spread over the vocabulary, no random numbers."""
    return ((torch.arange(1, _TOKENS + 1) * 7919) % vocab_size).unsqueeze(0)


@torch.inference_mode()
def golden_logits(model: Any) -> tuple[float, ...]:
    """The first 8 logits after the golden prompt, in float32, rounded to five decimals."""
    logits = model.eval()(golden_ids(model.config.vocab_size)).logits[0, -1, :COUNT]
    return tuple(round(float(x), 5) for x in logits)


def convert(source: Path, target: Path, golden: tuple[float, ...] = ()) -> dict[str, object]:
    """Write the folder ``target``. Returns digest and golden logits.

    Raises GoldenMismatch, or what transformers raises for a file it does not understand; ``target``
    then does not exist.
    """
    model, tokenizer = _read(source)
    logits = golden_logits(model)
    if golden and not torch.allclose(
        torch.tensor(logits), torch.tensor(golden), rtol=_TOLERANCE, atol=_TOLERANCE
    ):
        raise GoldenMismatch(f"golden logits are {list(logits)}, expected {list(golden)}")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        model.save_pretrained(partial, max_shard_size="100GB")
        tokenizer.save_pretrained(partial)
        for path in partial.iterdir():  # another user's service may share the cache
            path.chmod(0o644)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"weights_digest": content_digest(target / "model.safetensors"), "golden": logits}


def _read(source: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    # What is loaded from GGUF refuses to be saved; the same architecture with its tensors does not.
    raw = loaded.config.to_dict()
    raw.pop("quantization_config", None)
    raw.pop("_model_name_or_path", None)
    model: Any = type(loaded)(type(loaded.config)(**raw))
    model.load_state_dict(loaded.state_dict(), strict=True)
    return model.to(torch.float32), tokenizer


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--golden", default="", help="expected logits, separated by commas")
    args = parser.parse_args(argv)
    set_threads(2)
    golden = tuple(float(x) for x in args.golden.split(",") if x)
    try:
        done = convert(args.source, args.target, golden)
    except Exception as error:  # hostile files raise almost anything; the parent shows one line
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
