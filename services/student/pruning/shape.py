"""The sizes of a Llama-family model, and what they weigh, from the numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from services.common.errors import InvalidInput

_SIZES = (
    "layers",
    "hidden_size",
    "intermediate_size",
    "attention_heads",
    "key_value_heads",
    "head_dim",
    "vocab_size",
)
CUT_SIZES = ("layers", "hidden_size", "intermediate_size", "attention_heads")
"""The sizes that a cut may make smaller."""
_FIXED = ("key_value_heads", "head_dim", "vocab_size", "tied")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model without biases: RMSNorm, grouped-query attention, gated feed-forward.

    Raises InvalidInput where the sizes do not make a model.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """Whether input and output embedding are one matrix."""
    kept_layers: tuple[int, ...] = ()
    """Which layers of the larger model, from 0, rising; empty leaves that to the importance."""

    def __post_init__(self) -> None:
        wrong = list(self._wrong())
        if wrong:
            text = "; ".join(f"{field}: {why}" for field, why in wrong)
            raise InvalidInput(text, field=wrong[0][0], violations=wrong)

    @property
    def said(self) -> str:
        """The sizes that a cut changes, for people."""
        layers = "1 layer" if self.layers == 1 else f"{self.layers} layers"
        return (
            f"{layers}, hidden size {self.hidden_size}, {self.intermediate_size} neurons, "
            f"{self.attention_heads} heads"
        )

    @property
    def queries_per_group(self) -> int:
        """Attention heads that share one key/value head."""
        return self.attention_heads // self.key_value_heads

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: q and o, k and v, gate, up and down, two norms."""
        attention = 2 * self.head_dim * (self.attention_heads + self.key_value_heads)
        return self.hidden_size * (attention + 3 * self.intermediate_size + 2)

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of all layers and the last norm; neither embedding nor output layer."""
        return self.layers * self.layer_parameters + self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.hidden_size
        return self.non_embedding_parameters + embeddings

    def resized(self, **sizes: int) -> Shape:
        """The shape with other sizes; which layers it keeps is open. Raises InvalidInput."""
        return replace(replace(self, kept_layers=()), **sizes)  # type: ignore[arg-type]

    def check_within(self, base: Shape) -> None:
        """Raise InvalidInput, field by field, where `base` cannot be cut to this shape."""
        wrong = [
            (name, f"{getattr(self, name)} is more than the model's {getattr(base, name)}")
            for name in CUT_SIZES
            if getattr(self, name) > getattr(base, name)
        ]
        wrong += [
            (name, f"stays what it is in the model, {getattr(base, name)}")
            for name in _FIXED
            if getattr(self, name) != getattr(base, name)
        ]
        if self.kept_layers and self.kept_layers[-1] >= base.layers:
            wrong.append(("kept_layers", f"the model has layers 0 to {base.layers - 1}"))
        if wrong:
            text = "; ".join(f"{field}: {why}" for field, why in wrong)
            raise InvalidInput(text, field=wrong[0][0], violations=wrong)

    def _wrong(self) -> Iterator[tuple[str, str]]:
        for name in _SIZES:
            if getattr(self, name) < 1:
                yield name, "must be at least 1"
                return  # what follows would divide by it
        heads, groups, hidden = self.attention_heads, self.key_value_heads, self.hidden_size
        if heads % groups:
            yield "attention_heads", f"{heads} in {groups} groups; {_near(heads, groups)}"
        if hidden % heads:
            # transformers refuses to save or load such a configuration, whatever head_dim says.
            why = f"{hidden} is no multiple of {heads} attention heads; {_near(hidden, heads)}"
            yield "hidden_size", why
        kept = self.kept_layers
        if kept and (list(kept) != sorted(set(kept)) or kept[0] < 0):
            yield "kept_layers", "must rise, from 0"
        elif kept and len(kept) != self.layers:
            yield "kept_layers", f"names {len(kept)} layers, layers says {self.layers}"


def spread(layers: int, count: int) -> list[int]:
    """`count` of so many layers at equal distances, the last included; all where it is more."""
    some = min(count, layers)
    return [-(-layers * at // some) - 1 for at in range(1, some + 1)]


def _near(value: int, divisor: int) -> str:
    """The multiples of `divisor` on both sides of `value`, for a message."""
    low = value // divisor * divisor
    return f"{low} or {low + divisor} would do" if low else f"{divisor} would do"
