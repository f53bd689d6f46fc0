from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.measure import Latency, compare_latency
from secateur.measure.latency import summary

INPUTS = (torch.zeros(5, 3),)


class Recorder(nn.Module):
    """Writes down each call in a shared diary; may fail at a given call."""

    def __init__(self, name: str, diary: list[tuple[str, bool, bool, int]], fails_at: int = 0):
        super().__init__()
        self.name, self.diary, self.fails_at = name, diary, fails_at
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.diary.append(
            (self.name, self.norm.training, torch.is_inference_mode_enabled(), threads())
        )
        if len(self.diary) == self.fails_at:
            raise RuntimeError("broken network")
        return self.norm(x)


def threads() -> int:
    return torch.get_num_threads()


def turns(diary: list[tuple[str, bool, bool, int]]) -> list[str]:
    names = [entry[0] for entry in diary]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


def test_rounds_are_interleaved_after_a_warm_up():
    diary: list[tuple[str, bool, bool, int]] = []
    models = {"a": Recorder("a", diary), "b": Recorder("b", diary)}
    found = compare_latency(models, INPUTS, rounds=3, seconds=1e-6)
    # A budget this small leaves three warm-up calls and three calls a round.
    assert turns(diary) == ["a", "b"] * 4
    assert len(diary) == 2 * (3 + 3 * 3)
    assert all(not training and inference for _, training, inference, _ in diary)
    assert list(found) == ["a", "b"]
    assert found["a"].calls == 9
    assert (found["a"].rounds, found["a"].batch, found["a"].threads) == (3, 5, threads())


def test_a_larger_budget_means_more_calls():
    found = compare_latency({"a": nn.Linear(3, 3)}, INPUTS, rounds=2, seconds=0.2)
    assert found["a"].calls > 2 * 3
    assert found["a"].calls % 2 == 0


def test_modes_threads_and_statistics_come_back():
    diary: list[tuple[str, bool, bool, int]] = []
    model, before = Recorder("a", diary).train(), threads()
    model.frozen.eval()
    other = 2 if before == 1 else 1
    found = compare_latency({"a": model}, INPUTS, rounds=1, seconds=1e-6, threads=other)
    assert {entry[3] for entry in diary} == {other} == {found["a"].threads}
    assert threads() == before
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    assert int(model.norm.num_batches_tracked) == 0


@pytest.mark.parametrize("fails_at", [1, 5])
def test_a_network_that_fails_leaves_everything_as_it_was(fails_at):
    before = threads()
    model = Recorder("a", [], fails_at).train()
    model.frozen.eval()
    healthy = nn.Linear(3, 3).train()
    with pytest.raises(RuntimeError, match="broken network"):
        compare_latency(
            {"a": model, "b": healthy}, INPUTS, seconds=1e-6, threads=2 if before == 1 else 1
        )
    assert threads() == before
    assert not torch.is_inference_mode_enabled()
    assert (model.training, model.frozen.training, healthy.training) == (True, False, True)


def test_a_network_may_stand_under_two_names():
    model = nn.Linear(3, 3).train()
    found = compare_latency({"a": model, "b": model}, INPUTS, rounds=1, seconds=1e-6)
    assert set(found) == {"a", "b"}
    assert model.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": {}}, "no network"),
        ({"example_inputs": ()}, "no example input"),
        ({"rounds": 0}, "0 rounds"),
        ({"seconds": 0.0}, "0.0 seconds"),
        ({"seconds": math.nan}, "nan seconds"),
        ({"seconds": math.inf}, "inf seconds"),
        ({"threads": 0}, "0 threads"),
    ],
)
def test_bad_requests_are_refused(change, words):
    request = {"models": {"a": nn.Linear(3, 3)}, "example_inputs": INPUTS, **change}
    with pytest.raises(SecateurError, match=words):
        compare_latency(request.pop("models"), request.pop("example_inputs"), **request)


@given(st.lists(st.lists(st.floats(1e-6, 10.0), min_size=3, max_size=8), min_size=1, max_size=7))
def test_the_summary_agrees_with_torch(rounds):
    found = summary(rounds, threads=1, batch=1)
    medians = [float(torch.tensor(r, dtype=torch.float64).quantile(0.5)) for r in rounds]
    every = torch.tensor([time for r in rounds for time in r], dtype=torch.float64)
    assert found.low_ms == pytest.approx(1000 * min(medians))
    assert found.high_ms == pytest.approx(1000 * max(medians))
    middle = torch.tensor(medians, dtype=torch.float64).quantile(0.5)
    assert found.p50_ms == pytest.approx(1000 * float(middle))
    assert found.p95_ms == pytest.approx(1000 * float(every.quantile(0.95)))
    assert found.low_ms <= found.p50_ms <= found.high_ms
    assert found.calls == len(every)


def test_a_latency_is_frozen_and_goes_into_json():
    latency = Latency(1.0, 1.2, 0.9, 1.1, 7, 70, 2, 1)
    assert json.loads(json.dumps(latency.to_dict())) == {
        "p50_ms": 1.0,
        "p95_ms": 1.2,
        "low_ms": 0.9,
        "high_ms": 1.1,
        "rounds": 7,
        "calls": 70,
        "threads": 2,
        "batch": 1,
    }
    with pytest.raises(AttributeError):
        latency.p50_ms = 2.0  # type: ignore[misc]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_waited_for():
    model = nn.Linear(3, 3).cuda()
    found = compare_latency({"a": model}, (INPUTS[0].cuda(),), rounds=2, seconds=0.01)
    assert found["a"].p50_ms > 0
