"""Activations against plain loops over what the layers answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier
from secateur.sparsify.activations import active, independence, rank


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias, std=0.2)
    model(torch.randn(16, 2, 6, 6))  # running statistics other than 0 and 1
    return model.eval()


BATCHES = [
    (torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(3).long()),
    (torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2)), torch.zeros(2).long()),
]


def removed_filters(criterion: str) -> set[int]:
    model = network()
    text = f"filter | local | {criterion} | one_shot"
    sparsifier = Sparsifier(model, text, sparsity=0.4, include="0", data=BATCHES)
    sparsifier.step(1.0)
    return set((~sparsifier.masks["0.weight"].flatten(1).any(1)).nonzero().flatten().tolist())


def feature_maps() -> Tensor:
    """What the network itself shows behind its norm and its ReLU."""
    with torch.no_grad():
        return network()[:3](torch.cat([inputs for inputs, _ in BATCHES]))


def lowest(scores: list[float], number: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda place: scores[place])[:number])


def test_apoz_counts_what_is_zero_behind_norm_and_relu() -> None:
    maps = feature_maps()
    zeros = [float((maps[:, channel] == 0).float().mean()) for channel in range(5)]
    assert len(set(zeros)) == 5
    assert removed_filters("apoz") == lowest([-share for share in zeros], 2)
    torch.testing.assert_close(active(maps), 1 - torch.tensor(zeros))


def test_hrank_is_the_mean_rank_of_the_maps() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 0], maps[1, 0] = torch.eye(4), torch.ones(4, 4)  # ranks 4 and 1
    maps[0, 1, 0, 0], maps[1, 1, :2, :2] = 1, torch.eye(2)  # ranks 1 and 2
    assert rank(maps).tolist() == [2.5, 1.5, 0.0]
    assert rank(torch.tensor([[2.0, 0.0], [1.0, 0.0]])[..., None]).tolist() == [1.0, 0.0]


def test_chip_is_the_fall_of_the_nuclear_norm() -> None:
    maps = feature_maps()
    expected = []
    for channel in range(5):
        falls = []
        for example in maps.flatten(2):
            others = torch.cat([example[:channel], example[channel + 1 :]])
            falls.append(
                torch.linalg.matrix_norm(example, "nuc") - torch.linalg.matrix_norm(others, "nuc")
            )
        expected.append(float(torch.stack(falls).mean()))
    torch.testing.assert_close(independence(maps), torch.tensor(expected), rtol=1e-3, atol=1e-3)
    assert removed_filters("chip") == lowest(expected, 2)


def test_stade_and_fluctuation_read_the_spread_of_the_inputs() -> None:
    model = network()
    inputs = torch.cat([batch for batch, _ in BATCHES])
    with torch.no_grad():
        read = model[:5](inputs)
    spread = read.std(0, correction=0)
    for criterion, scores in (
        ("stade", model[5].weight.detach().abs() * spread),
        ("fluctuation", model[5].weight.detach().square() * spread.square()),
    ):
        pruned = network()
        text = f"weight | local | {criterion} | one_shot"
        sparsifier = Sparsifier(pruned, text, sparsity=0.5, include="5", data=BATCHES)
        sparsifier.step(1.0)
        gone = ~sparsifier.masks["5.weight"]
        assert scores[gone].max() <= scores[~gone].min() * (1 + 1e-5)


def test_what_cannot_be_watched_is_told() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.layer.weight)

    batches = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    sparsifier = Sparsifier(Bare(), "weight | local | stade | one_shot", sparsity=0.5, data=batches)
    with pytest.raises(SecateurError, match="never passes through layer"):
        sparsifier.step(1.0)
