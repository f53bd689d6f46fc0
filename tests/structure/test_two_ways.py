"""Code that takes another way while it is traced or compiled stays right in both."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import shrink, trace


class Grouped(nn.Module):
    """Attention of 8 query heads over 2 key heads; torch.export sees the keys repeated."""

    def __init__(self, asks: bool = True) -> None:
        super().__init__()
        self.asks = asks
        self.size = 6
        self.groups = 4
        self.query = nn.Linear(10, 48)
        self.key = nn.Linear(10, 12)
        self.value = nn.Linear(10, 12)
        self.out = nn.Linear(48, 10)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(each(x)) for each in (self.query, self.key, self.value))
        if self.asks and torch.compiler.is_compiling():
            if self.groups > 1:
                key, value = self.repeated(key), self.repeated(value)
            found = F.scaled_dot_product_attention(query, key, value)
        else:
            found = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return self.out(found.transpose(1, 2).flatten(2))

    def repeated(self, x: Tensor) -> Tensor:
        batch, heads, length, size = x.shape
        wide = x[:, :, None].expand(batch, heads, self.groups, length, size)
        return wide.reshape(batch, heads * self.groups, length, size)


def example() -> Tensor:
    return torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))


def masks_of_groups(left: int) -> dict[str, Tensor]:
    """Masks that leave the first query heads of every key head."""
    stays = (torch.arange(4) < left)[None, :, None].expand(2, 4, 6).reshape(-1)
    return {"query.weight": stays[:, None].expand(48, 10), "query.bias": stays,
            "out.weight": stays.expand(10, 48)}  # fmt: skip


@pytest.mark.parametrize("left", [3, 1])
def test_both_ways_are_right_after_shrinking(left: int) -> None:
    torch.manual_seed(0)
    model = Grouped().eval()
    masks = masks_of_groups(left)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    expected = model(example())
    shrink(model, masks, example())
    assert model.groups == left
    assert model.query.out_features == 12 * left
    torch.testing.assert_close(model(example()), expected)
    exported = torch.export.export(model, (example(),)).module()
    torch.testing.assert_close(exported(example()), expected)


def test_code_that_does_not_ask_is_recorded_once() -> None:
    assert [run.traced for run in trace(Grouped(asks=False).eval(), example()).runs] == [False]


def test_code_that_asks_is_recorded_twice() -> None:
    assert [run.traced for run in trace(Grouped().eval(), example()).runs] == [False, True]


class Curious(nn.Module):
    """Asks, and does the same either way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4)
        self.answers: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(torch.compiler.is_exporting() or torch.jit.is_tracing())
        return self.two(self.one(x))


def test_one_way_for_both_answers_is_recorded_once() -> None:
    model = Curious().eval()
    assert len(trace(model, torch.zeros(2, 4)).runs) == 1
    model(torch.zeros(2, 4))
    assert model.answers == [False]


class Failing(nn.Module):
    """Cannot run while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise NotImplementedError("not while it is compiled")
        return self.two(self.one(x))


def test_a_way_that_does_not_run_is_left_aside() -> None:
    questions = (torch.compiler.is_compiling, torch.jit.is_tracing)
    assert [axis.size for axis in trace(Failing().eval(), torch.zeros(2, 4)).removable] == [8]
    assert (torch.compiler.is_compiling, torch.jit.is_tracing) == questions


FIRST_COMPILED_AFTER_A_TRACE = """
import torch
from torch import nn
from secateur import trace

model = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
x = torch.randn(2, 5, 8)
trace(model, x)

class Asks(nn.Module):
    def forward(self, x):
        return x + 1 if torch.compiler.is_compiling() else x - 1

torch.compile(model, backend="eager", fullgraph=True)(x)
assert torch.equal(torch.compile(Asks(), backend="eager", fullgraph=True)(x), x + 1)
assert torch.equal(Asks()(x), x - 1)
"""


def test_a_process_that_traces_first_still_compiles() -> None:
    """Dynamo remembers PyTorch's functions as they are when it is imported."""
    run = [sys.executable, "-W", "ignore", "-c", FIRST_COMPILED_AFTER_A_TRACE]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
