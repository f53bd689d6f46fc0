"""Statistics: what a pass over data says of the weights, for the criteria that ask.

Data is an iterable of batches. A batch is a pair (inputs, targets), a mapping of a model's keyword
arguments, or whatever the given ``loss`` function understands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.errors import SecateurError
from secateur.sparsify.ranks import over_ranks
from secateur.sparsify.scoring import widen
from secateur.structure.usage import evaluating, observe
from secateur.structure.weights import PrunableWeight

Loss = Callable[[nn.Module, Any], Tensor]
Statistics = dict[str, dict[str, Tensor]]
"""Need, then name of the weight, to a tensor in the weight's layout (or extent 1 where shared)."""

HESSIAN_SAMPLES = 8


def collect(
    model: nn.Module,
    weights: Sequence[PrunableWeight],
    needs: Iterable[str],
    data: Iterable[Any],
    loss: Loss | None = None,
    seed: int = 0,
) -> Statistics:
    """Measure the needs over all batches, in eval mode, leaving the model as it was.

    Raises SecateurError where the data is empty, the loss cannot be computed, or a weight is not
    used by the model. In a process group every rank contributes its batches.
    """
    batches = reiterable(data)
    if next(iter(batches), None) is None:
        raise SecateurError("the data holds no batch; pass data= with at least one")
    asked = set(needs)
    found: Statistics = {}
    with evaluating(model):
        if "input_norm" in asked:
            found["input_norm"] = _input_norms(model, weights, batches)
        if "gradient" in asked:
            found["gradient"] = _gradients(model, weights, batches, loss)
        if asked & {"fisher", "output_taylor"}:
            found |= _per_example(model, weights, batches, loss, asked)
        if "hessian" in asked:
            found["hessian"] = _hessian(model, weights, batches, loss, seed)
        if "hessian_gradient" in asked:
            found["hessian_gradient"] = _hessian_gradient(model, weights, batches, loss)
        if "synaptic_flow" in asked:
            found["synaptic_flow"] = _synaptic_flow(model, weights, batches)
    return {need: found[need] for need in asked if need in found}


def mean_loss(model: nn.Module, data: Iterable[Any], loss: Loss | None = None) -> float:
    """Return the mean loss over batches, in eval mode without gradients."""
    if next(iter(data), None) is None:
        raise SecateurError("the data holds no batch; pass data= with at least one")
    with evaluating(model), torch.no_grad():
        losses = [compute_loss(model, batch, loss).detach().double() for batch in data]
    return float(over_ranks([torch.stack(losses).mean()])[0])


def compute_loss(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    """Return the loss of one batch: the given function's, the model's own, or cross entropy."""
    batch = to_device(batch, model)
    if loss is not None:
        return loss(model, batch)
    if isinstance(batch, Mapping):
        own = getattr(model(**batch), "loss", None)
        if own is None:
            raise SecateurError("the model returns no .loss for such a batch; pass loss=")
        return own  # type: ignore[no-any-return]
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise SecateurError(
            f"a batch is a {type(batch).__name__}: expected (inputs, targets); else pass loss="
        )
    inputs, targets = batch
    outputs = model(inputs)
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise SecateurError("the model's output is not one tensor; pass loss=")
    if targets.is_floating_point():
        return functional.mse_loss(outputs, targets)
    return functional.cross_entropy(outputs, targets)


def to_device(value: Any, model: nn.Module) -> Any:
    """Move tensors in tuples, lists and mappings to the model's device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def move(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item.to(device)
        if isinstance(item, Mapping):
            return {key: move(part) for key, part in item.items()}
        if isinstance(item, (tuple, list)):
            return type(item)(move(part) for part in item)
        return item

    return move(value)


def run_model(model: nn.Module, batch: Any) -> Any:
    """Return the model's answer to the inputs of a batch."""
    given = to_device(batch, model)
    if isinstance(given, Mapping):
        return model(**given)
    return model(given[0] if isinstance(given, (tuple, list)) else given)


def _input_norms(
    model: nn.Module, weights: Sequence[PrunableWeight], batches: Iterable[Any]
) -> dict[str, Tensor]:
    def run() -> None:
        for batch in batches:
            run_model(model, batch)

    usage = observe(model, run, inputs=True)
    parameters = dict(model.named_parameters())
    norms: dict[str, Tensor] = {}
    for weight in weights:
        parameter = parameters[weight.parameter]
        squares = usage.input_squares(weight, parameter.shape[0])
        if squares is None:
            raise SecateurError(
                f"the data never passes through {weight.name}, so its inputs are unknown; "
                "exclude it"
            )
        norms[weight.name] = squares
    totals = over_ranks(list(norms.values()), mean=False)
    return {
        weight.name: _by_input(weight, total.sqrt().to(widen(parameters[weight.parameter]).dtype))
        for weight, total in zip(weights, totals, strict=True)
    }


def _by_input(weight: PrunableWeight, vector: Tensor) -> Tensor:
    """Lay a vector over all inputs out as [groups, 1, inputs, 1, ...]."""
    groups, _, inputs, *kernel = weight.shape
    return vector.reshape(groups, 1, inputs, *[1] * len(kernel))


def _gradients(
    model: nn.Module, weights: Sequence[PrunableWeight], batches: Iterable[Any], loss: Loss | None
) -> dict[str, Tensor]:
    names, tensors = _wanted(model, weights)
    totals = [widen(torch.zeros_like(tensor)) for tensor in tensors]
    count = 0
    for batch in batches:
        count += 1
        for total, gradient in zip(totals, _grads(model, tensors, batch, loss), strict=True):
            total.add_(gradient)
    means = [total / count for total in totals]
    reduced = dict(zip(names, over_ranks(means), strict=True))
    return {weight.name: weight.view(reduced[weight.parameter]) for weight in weights}


def _per_example(
    model: nn.Module,
    weights: Sequence[PrunableWeight],
    batches: Iterable[Any],
    loss: Loss | None,
    asked: set[str],
) -> Statistics:
    """Average squared gradients, and |sum of w g + b g_b| per output, over single examples.

    The sum over an output's positions of z dL/dz equals the sum over its weights of w dL/dw plus
    b dL/db, so that no activation has to be stored.
    """
    biases = {weight.biases[0] for weight in weights if weight.biases}
    names, tensors = _wanted(model, weights, biases)
    values = dict(zip(names, tensors, strict=True))
    squares = {weight.name: torch.zeros(weight.shape) for weight in weights}
    changes = {weight.name: torch.zeros(weight.shape[:2]) for weight in weights}
    count = 0
    for example in _examples(batches):
        gradients = dict(zip(names, _grads(model, tensors, example, loss), strict=True))
        count += 1
        for weight in weights:
            gradient = widen(weight.view(gradients[weight.parameter]))
            if "fisher" in asked:
                squares[weight.name] = squares[weight.name].to(gradient) + gradient.square()
            if "output_taylor" in asked:
                product = gradient * weight.view(values[weight.parameter])
                change = product.flatten(2).sum(2)
                for bias in weight.biases[:1]:
                    change = change + weight.view_outputs(gradients[bias] * values[bias])
                changes[weight.name] = changes[weight.name].to(change) + change.abs()
    found: Statistics = {}
    if "fisher" in asked:
        means = over_ranks([squares[weight.name] / count for weight in weights])
        found["fisher"] = {w.name: mean for w, mean in zip(weights, means, strict=True)}
    if "output_taylor" in asked:
        means = over_ranks([changes[weight.name] / count for weight in weights])
        found["output_taylor"] = {
            w.name: mean.reshape(*w.shape[:2], *[1] * (len(w.shape) - 2))
            for w, mean in zip(weights, means, strict=True)
        }
    return found


@torch.enable_grad()
@sdpa_kernel(SDPBackend.MATH)  # the fused attention kernels have no second derivative
def _hessian(
    model: nn.Module,
    weights: Sequence[PrunableWeight],
    batches: Iterable[Any],
    loss: Loss | None,
    seed: int,
) -> dict[str, Tensor]:
    """Estimate the diagonal as the mean of z * (H z) over random signs z (Hutchinson)."""
    names, tensors = _wanted(model, weights)
    totals = [widen(torch.zeros_like(tensor)) for tensor in tensors]
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for batch in batches:
        count += 1
        gradients = _grads(model, tensors, batch, loss, keep_graph=True)
        for sample in range(HESSIAN_SAMPLES):
            signs = [
                (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1).to(tensor)
                for tensor in tensors
            ]
            inner = torch.stack(
                [(g * z).sum() for g, z in zip(gradients, signs, strict=True)]
            ).sum()
            if not inner.requires_grad:  # a loss linear in the weights has no curvature
                break
            curvatures = torch.autograd.grad(
                inner, tensors, retain_graph=sample + 1 < HESSIAN_SAMPLES, allow_unused=True
            )
            for total, sign, curvature in zip(totals, signs, curvatures, strict=True):
                if curvature is not None:
                    total.add_(sign * curvature)
    means = [total / (HESSIAN_SAMPLES * count) for total in totals]
    reduced = dict(zip(names, over_ranks(means), strict=True))
    return {weight.name: weight.view(reduced[weight.parameter]) for weight in weights}


@torch.enable_grad()
@sdpa_kernel(SDPBackend.MATH)
def _hessian_gradient(
    model: nn.Module, weights: Sequence[PrunableWeight], batches: Iterable[Any], loss: Loss | None
) -> dict[str, Tensor]:
    """Return H g, both of the mean loss over all batches, by two passes of differentiation."""
    names, tensors = _wanted(model, weights)
    whole = _gradients(model, weights, batches, loss)
    mean = {name: torch.zeros_like(tensor) for name, tensor in zip(names, tensors, strict=True)}
    for weight in weights:
        weight.view(mean[weight.parameter]).copy_(whole[weight.name])
    totals = [widen(torch.zeros_like(tensor)) for tensor in tensors]
    count = 0
    for batch in batches:
        count += 1
        gradients = _grads(model, tensors, batch, loss, keep_graph=True)
        inner = torch.stack(
            [(g * mean[name]).sum() for name, g in zip(names, gradients, strict=True)]
        ).sum()
        if not inner.requires_grad:
            continue
        products = torch.autograd.grad(inner, tensors, allow_unused=True)
        for total, product in zip(totals, products, strict=True):
            if product is not None:
                total.add_(product)
    reduced = dict(zip(names, over_ranks([total / count for total in totals]), strict=True))
    return {weight.name: weight.view(reduced[weight.parameter]) for weight in weights}


@torch.enable_grad()
def _synaptic_flow(
    model: nn.Module, weights: Sequence[PrunableWeight], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Return dR/d|w|, R the sum of what the model with absolute values answers to ones.

    The flow grows with every layer, so that it is computed in double precision.
    """
    names, tensors = _wanted(model, weights)
    total, leaves = flow_of_ones(model, batches, dict.fromkeys(names))
    flows = torch.autograd.grad(total, leaves, allow_unused=True)
    found = {
        name: torch.zeros_like(tensor) if flow is None else flow.to(widen(tensor).dtype)
        for name, tensor, flow in zip(names, tensors, flows, strict=True)
    }
    return {weight.name: weight.view(found[weight.parameter]) for weight in weights}


def flow_of_ones(
    model: nn.Module, batches: Iterable[Any], wanted: Iterable[str]
) -> tuple[Tensor, list[Tensor]]:
    """Return the sum of what the model answers to ones with all its values absolute.

    Beside it come the absolute values of the parameters that are wanted, which it depends on.
    Raises SecateurError where what goes in or comes out is not one tensor of numbers.
    """
    first = to_device(next(iter(batches)), model)
    given = first[0] if isinstance(first, (tuple, list)) else first
    if not isinstance(given, Tensor) or not given.is_floating_point():
        raise SecateurError(
            "synaptic flow sends ones through the model, and its inputs are not one tensor of "
            "numbers; choose another criterion"
        )
    size = {
        name: tensor.detach().double().abs() if tensor.is_floating_point() else tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    leaves = [size[name].requires_grad_() for name in wanted]
    if not leaves:  # what the layers answer is asked for, so that something has to be tracked
        next(value for value in size.values() if value.is_floating_point()).requires_grad_()
    ones = torch.ones_like(given[:1], dtype=torch.float64)
    answer = torch.func.functional_call(model, size, (ones,))
    answer = getattr(answer, "logits", answer)
    if not isinstance(answer, Tensor):
        raise SecateurError("the model's output is not one tensor, so no flow can be summed")
    return answer.sum(), leaves


def _wanted(
    model: nn.Module, weights: Sequence[PrunableWeight], extra: Iterable[str] = ()
) -> tuple[list[str], list[nn.Parameter]]:
    parameters = dict(model.named_parameters())
    names = list(dict.fromkeys([*(weight.parameter for weight in weights), *sorted(extra)]))
    for name in names:
        if not parameters[name].requires_grad:
            raise SecateurError(
                f"{name} has no gradient (requires_grad is off); exclude it or let it train"
            )
    return names, [parameters[name] for name in names]


def _grads(
    model: nn.Module,
    tensors: list[nn.Parameter],
    batch: Any,
    loss: Loss | None,
    keep_graph: bool = False,
) -> list[Tensor]:
    with torch.enable_grad():
        value = compute_loss(model, batch, loss)
        gradients = torch.autograd.grad(value, tensors, create_graph=keep_graph, allow_unused=True)
    return [
        gradient if gradient is not None else torch.zeros_like(tensor)
        for gradient, tensor in zip(gradients, tensors, strict=True)
    ]


def _examples(batches: Iterable[Any]) -> Iterator[Any]:
    """Split every batch into batches of one example."""
    for batch in batches:
        if isinstance(batch, Mapping):
            size = len(next(iter(batch.values())))
            for place in range(size):
                yield {key: value[place : place + 1] for key, value in batch.items()}
        elif isinstance(batch, (tuple, list)):
            for place in range(len(batch[0])):
                yield tuple(part[place : place + 1] for part in batch)
        else:
            raise SecateurError(
                f"a batch is a {type(batch).__name__}: it cannot be split into examples"
            )


def reiterable(data: Iterable[Any]) -> Iterable[Any]:
    """Return data that can be read more than once: itself, or a list where it would be used up."""
    return list(data) if iter(data) is data else data
