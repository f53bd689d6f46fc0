"""SparseGPT and Wanda on one transformer block, beside a plain reading of the published algorithms.

Both sides get the same block and the same inputs, look at them, and prune to one half in place. The
plain side is the papers' pseudocode with the hooks of their released code: SparseGPT (Frantar and
Alistarh 2023, blocks of 128 columns, damping 0.01), Wanda (Sun et al. 2024). Their masks and
weights are compared too. Seconds are those of the processor, one thread, as other work on the
machine would otherwise be measured too.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable

import common
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from secateur import Sparsifier

WIDTH, WIDER, TOKENS, EXAMPLES = 1024, 2688, 256, 8
TECHNIQUES = {
    "wanda": "weight | row | wanda | one_shot",
    "sparsegpt": "weight | local | obs | one_shot | compensate(sparsegpt)",
    "sparsegpt 2:4": "2:4 | local | obs | one_shot | compensate(sparsegpt)",
}


def transformer_block() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Return a LLaMA block of random weights and its calls on random hidden states."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=WIDER, num_attention_heads=16)
    config._attn_implementation = "sdpa"
    block = LlamaDecoderLayer(config, 0).eval()
    for parameter in block.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, 0, 0.02)
    states = torch.randn(EXAMPLES, TOKENS, WIDTH) @ (torch.randn(WIDTH, WIDTH) / WIDTH**0.5)
    place = LlamaRotaryEmbedding(config)(states, torch.arange(TOKENS)[None])
    return block, [
        {"hidden_states": part, "position_embeddings": place} for part in states.split(2)
    ]


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that both sides prune."""
    return {name: each for name, each in block.named_modules() if isinstance(each, nn.Linear)}


@torch.no_grad()
def look(
    block: nn.Module, calls: list[dict[str, Tensor]], see: Callable[[str, Tensor], None]
) -> None:
    """Run the block, and let every linear layer's input be seen as [features, rows]."""
    handles = [
        layer.register_forward_hook(
            lambda _, inputs, __, name=name: see(name, inputs[0].reshape(-1, inputs[0].shape[-1]).T)
        )
        for name, layer in linears(block).items()
    ]
    for call in calls:
        block(**call)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def plain_wanda(block: nn.Module, calls: list[dict[str, Tensor]]) -> None:
    """Remove half of each output's weights by |w| ||x||, as published."""
    rows: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def see(name: str, inputs: Tensor) -> None:
        count = seen.get(name, 0)
        before = rows.get(name, torch.zeros(len(inputs)))
        seen[name] = count + inputs.shape[1]
        rows[name] = before * (count / seen[name])
        rows[name] += torch.norm(inputs, p=2, dim=1) ** 2 / seen[name]

    look(block, calls, see)
    for name, layer in linears(block).items():
        metric = layer.weight.abs() * rows[name].reshape(1, -1).sqrt()
        mask = torch.zeros_like(metric, dtype=torch.bool)
        order = torch.sort(metric, dim=-1, stable=True)[1][:, : metric.shape[1] // 2]
        mask.scatter_(1, order, True)
        layer.weight[mask] = 0


@torch.no_grad()
def plain_sparsegpt(
    block: nn.Module, calls: list[dict[str, Tensor]], pattern: tuple[int, int] | None = None
) -> None:
    """Remove half of each layer's weights, and let the columns to come make up for them."""
    hessians: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def see(name: str, inputs: Tensor) -> None:
        count = seen.get(name, 0)
        seen[name] = count + inputs.shape[1]
        before = hessians.get(name, torch.zeros(len(inputs), len(inputs)))
        scaled = (2 / seen[name]) ** 0.5 * inputs
        hessians[name] = before * (count / seen[name]) + scaled.matmul(scaled.t())

    look(block, calls, see)
    for name, layer in linears(block).items():
        _prune(layer.weight, hessians.pop(name), pattern)


def _prune(parameter: Tensor, hessian: Tensor, pattern: tuple[int, int] | None) -> None:
    weight, size = parameter.clone(), parameter.shape[1]
    places = torch.arange(size)
    hessian[places, places] += 0.01 * torch.mean(torch.diag(hessian))
    hessian = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    inverse = torch.linalg.cholesky(hessian, upper=True)
    for first in range(0, size, 128):
        last = min(first + 128, size)
        own = weight[:, first:last].clone()
        found, errors = torch.zeros_like(own), torch.zeros_like(own)
        factor = inverse[first:last, first:last]
        if pattern is None:
            scores = own**2 / torch.diag(factor).reshape(1, -1) ** 2
            limit = torch.sort(scores.flatten())[0][scores.numel() // 2 - 1]
            mask = scores <= limit
        else:
            mask = torch.zeros_like(own, dtype=torch.bool)
        for place in range(last - first):
            column, pivot = own[:, place], factor[place, place]
            if pattern is not None and place % pattern[1] == 0:
                span = slice(place, place + pattern[1])
                scores = own[:, span] ** 2 / torch.diag(factor)[span].reshape(1, -1) ** 2
                mask.scatter_(1, place + torch.topk(scores, pattern[0], 1, largest=False)[1], True)
            kept = column.clone()
            kept[mask[:, place]] = 0
            found[:, place] = kept
            error = (column - kept) / pivot
            own[:, place:] -= error.unsqueeze(1).matmul(factor[place, place:].unsqueeze(0))
            errors[:, place] = error
        weight[:, first:last] = found
        weight[:, last:] -= errors.matmul(inverse[first:last, last:])
    parameter.copy_(weight)


def plain(name: str, block: nn.Module, calls: list[dict[str, Tensor]]) -> None:
    """Run the plain reading of a technique."""
    if name == "wanda":
        plain_wanda(block, calls)
    else:
        plain_sparsegpt(block, calls, (2, 4) if "2:4" in name else None)


def ours(name: str, block: nn.Module, calls: list[dict[str, Tensor]]) -> None:
    """Run the same by the Sparsifier, from the technique's text on."""
    sparsity = None if "2:4" in name else 0.5
    Sparsifier(block, TECHNIQUES[name], sparsity=sparsity, data=calls).step(1.0)


@torch.no_grad()
def agreement(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """Return the share of masks that are equal, and the greatest relative distance of a layer."""
    pairs = list(zip(linears(one).values(), linears(other).values(), strict=True))
    same = [((a.weight == 0) == (b.weight == 0)).double().mean() for a, b in pairs]
    apart = [(a.weight - b.weight).norm() / a.weight.norm() for a, b in pairs]
    return {"masks": float(torch.stack(same).mean()), "apart": float(torch.stack(apart).max())}


def main() -> None:
    """Measure, compare, print and write."""
    options = common.arguments(__doc__ or "")
    torch.set_num_threads(1)
    block, calls = transformer_block()

    def contender(function: Callable[..., None], name: str) -> Callable[[], float]:
        def run() -> float:
            copied = copy.deepcopy(block)
            gc.collect()
            start = time.process_time()
            function(name, copied, calls)
            return time.process_time() - start

        return run

    rows: dict[str, dict[str, float]] = {}
    seconds: dict[str, list[float]] = {}
    agree: dict[str, dict[str, float]] = {}
    for name in TECHNIQUES:
        pruned = [copy.deepcopy(block) for _ in range(2)]
        plain(name, pruned[0], calls)
        ours(name, pruned[1], calls)
        agree[name] = agreement(*pruned)
        pair = {"secateur": contender(ours, name), "plain": contender(plain, name)}
        measured = common.paired(pair, options.rounds)
        seconds |= {f"{name}, {who}": values for who, values in measured.items()}
        found = common.ratios(measured, "secateur")
        rows |= {f"{name}, {who}": row for who, row in found.items()}
    setting = {"block": "LLaMA", "width": WIDTH, "intermediate": WIDER, "rows": TOKENS * EXAMPLES,
               "sparsity": 0.5, "techniques": TECHNIQUES, "rounds": options.rounds,
               "agreement": agree, "threads": 1, "clock": "processor"}  # fmt: skip
    common.publish("Pruning a block / secateur's", {"setting": setting, "seconds": seconds}, rows,
                   options.json)  # fmt: skip


if __name__ == "__main__":
    main()
