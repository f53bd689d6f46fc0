"""Random networks: toy blocks stacked, with random weights and random statistics of norms.

A ``Plan`` says in a line what a network is made of, and hypothesis shrinks it to the shortest line
that still fails. ``build`` makes the network, ``inputs_of`` what goes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from structure.image_blocks import IMAGE_BLOCKS, Layer
from structure.token_blocks import TOKEN_BLOCKS
from structure.toys import Size, conv
from torch import Tensor, nn

WIDEST = 24
SOURCES = {
    "image": Size(3, (8, 8)),
    "signal": Size(2, (16,)),
    "volume": Size(1, (4, 4, 4)),
    "tokens": Size(6, (16,)),
    "words": Size(20, (9,)),
}
"""What goes in: channels or width and extent; of words, how many there are and the length."""

GIVEN = ("one", "two", "list", "dict", "tuple of two")
HEADS = ("linear", "flatten", "map", "several", "dict", "one channel", "tied")


@dataclass(frozen=True)
class Part:
    """A block's name and its options."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.options)})"


@dataclass(frozen=True)
class Plan:
    """What a network is made of."""

    source: str
    blocks: tuple[Part, ...]
    given: str = "one"
    width: int = 8
    head: str = "linear"
    seed: int = 0


class ToTokens(nn.Module):
    """Pixels become tokens."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        length = 1
        for each in size.extent:
            length *= each
        self.out = Size(size.width, (length,))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Words(nn.Module):
    """Words become tokens."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words)


class Network(nn.Module):
    """Stems for the inputs, blocks, and a head."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        source = SOURCES[plan.source]
        self.stem = _stem(plan.source, source, plan.width)
        self.other = _stem(plan.source, source, plan.width) if _count(plan) == 2 else None
        size = source.with_width(plan.width)
        self.blocks = nn.ModuleList()
        for part in plan.blocks:
            self.blocks.append(_make(part, size))
            size = self.blocks[-1].out
        self.tokens = _is_tokens(plan)
        self.head = _Head(plan.head, size, self.tokens)
        if plan.head == "tied":
            self.head.layer = nn.Linear(size.width, source.width, bias=False)
            self.head.layer.weight = self.stem.table.weight

    def forward(self, first: Any, second: Tensor | None = None) -> Any:
        if isinstance(first, dict):
            first, second = first["first"], first.get("second")
        elif isinstance(first, (list, tuple)):
            first, second = first[0], first[1] if len(first) > 1 else None
        x = self.stem(first)
        if self.other is not None:
            x = x + self.other(second)
        seen = []
        for each in self.blocks:
            x = each(x)
            seen.append(x)
        return self.head(x, seen)


class _Head(nn.Module):
    def __init__(self, kind: str, size: Size, tokens: bool) -> None:
        super().__init__()
        self.kind, self.tokens = kind, tokens
        width = size.width
        points = 1
        for each in size.extent:
            points *= each
        if kind == "flatten":
            self.layer: nn.Module = nn.Linear(width * points, 3)
        elif kind in ("map", "one channel"):
            out = 1 if kind == "one channel" else 2
            self.layer = nn.Linear(width, out) if tokens else conv(size, out)
        else:
            self.layer = nn.Linear(width, 3)

    def forward(self, x: Tensor, seen: list[Tensor]) -> Any:
        if self.kind == "flatten":
            return self.layer(x.flatten(1))
        if self.kind in ("map", "one channel"):
            return self.layer(x)
        if self.kind == "tied":
            return self.layer(x)
        pooled = x.mean(1) if self.tokens else x.flatten(2).mean(2)
        logits = self.layer(pooled)
        if self.kind == "several":
            return logits, [x.flatten(1).sum(1), pooled.sum()]
        if self.kind == "dict":
            return {"logits": logits, "first": seen[0].flatten(1).sum(1) if seen else logits}
        return logits


def _is_tokens(plan: Plan) -> bool:
    return plan.source in ("tokens", "words") or any(p.name == "to tokens" for p in plan.blocks)


def _count(plan: Plan) -> int:
    return 1 if plan.given == "one" else 2


def _stem(source: str, size: Size, width: int) -> nn.Module:
    if source == "words":
        return Words(size.width, width)
    if source == "tokens":
        return nn.Linear(size.width, width)
    return Layer(size, width)


def _make(part: Part, size: Size) -> nn.Module:
    if part.name == "to tokens":
        return ToTokens(size)
    made: nn.Module = {**IMAGE_BLOCKS, **TOKEN_BLOCKS}[part.name].make(size, **dict(part.options))
    return made


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter and every statistic a random value, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in model.named_parameters():
            fan = max(1, each[0].numel()) if each.dim() > 1 else 1
            values = torch.randn(each.shape, generator=generator, dtype=torch.float64)
            scale = fan**-0.5 if each.dim() > 1 else 0.3
            around = 1.0 if each.dim() == 1 and not name.endswith("bias") else 0.0
            each.copy_(around + scale * values)
        for name, each in model.named_buffers():
            if each.is_floating_point():
                values = torch.rand(each.shape, generator=generator, dtype=torch.float64)
                each.copy_(values + 0.5 if name.endswith("var") else values - 0.3)


def build(plan: Plan) -> nn.Module:
    """Make the network of a plan, in double precision."""
    torch.manual_seed(plan.seed)
    model = Network(plan).double()
    randomise(model, plan.seed)
    return model.eval()


def inputs_of(plan: Plan, batch: int = 2, seed: int = 0) -> tuple[Any, ...]:
    """Return example inputs for the network of a plan, to be called with as arguments."""
    generator = torch.Generator().manual_seed(seed)
    size = SOURCES[plan.source]

    def one() -> Tensor:
        if plan.source == "words":
            return torch.randint(size.width, (batch, *size.extent), generator=generator)
        shape = (
            (*size.extent, size.width) if plan.source == "tokens" else (size.width, *size.extent)
        )
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    return {
        "one": lambda: (one(),),
        "two": lambda: (one(), one()),
        "list": lambda: ([one(), one()],),
        "tuple of two": lambda: ((one(), one()),),
        "dict": lambda: ({"first": one(), "second": one()},),
    }[plan.given]()


@st.composite
def plans(draw: st.DrawFn, most: int = 4) -> Plan:
    """Draw a plan; every block fits what the one before it gives."""
    source = draw(st.sampled_from(list(SOURCES)))
    width = draw(st.sampled_from((8, 4, 12, 6, 16)))
    tokens = source in ("tokens", "words")
    size = SOURCES[source].with_width(width)
    parts: list[Part] = []
    for _ in range(draw(st.integers(1, most))):
        if not tokens and size.rank < 3 and parts and draw(st.integers(0, 5)) == 5:
            part, tokens = Part("to tokens"), True
        else:
            part = _draw_part(draw, size, tokens)
        made = _make(part, size)
        if made.out.width > WIDEST:
            break
        parts.append(part)
        size = made.out
    heads = HEADS if source == "words" and size.width == width else HEADS[:-1]
    return Plan(
        source,
        tuple(parts),
        draw(st.sampled_from(GIVEN)),
        width,
        draw(st.sampled_from(heads)),
        draw(st.integers(0, 99)),
    )


def _draw_part(draw: st.DrawFn, size: Size, tokens: bool) -> Part:
    registry = TOKEN_BLOCKS if tokens else IMAGE_BLOCKS
    fitting = [name for name, each in registry.items() if each.fits(size)]
    name = draw(st.sampled_from(fitting))
    options = {key: draw(st.sampled_from(values)) for key, values in registry[name].options.items()}
    return Part(name, tuple(options.items()))


def plan_of(name: str, **changed: Any) -> Plan:
    """Return a plan of one block with its simplest options, but for those that are given."""
    tokens = name in TOKEN_BLOCKS
    registry = TOKEN_BLOCKS if tokens else IMAGE_BLOCKS
    options = {key: values[0] for key, values in registry[name].options.items()} | changed
    return Plan("tokens" if tokens else "image", (Part(name, tuple(options.items())),), seed=1)
