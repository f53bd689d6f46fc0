"""Operators that work entry by entry: their operands' dimensions agree under broadcasting."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.rules.registry import Call, Dims, Zero, free_leaves, rule
from secateur.structure.terms import Term


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _clamped(call: Call) -> Zero:
    """Zero stays zero between bounds that are plain numbers on either side of it."""
    low = call.get("min", call.get("min_val"))
    high = call.get("max", call.get("max_val"))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return "none"
    return "first" if (low or 0) <= 0 <= (high or 0) else "none"


def _thresholded(call: Call) -> Zero:
    stays = call.get("threshold") < 0 or _is_zero(call.get("value"))
    return "first" if stays else "none"


def _power(call: Call) -> Zero:
    exponent = call.get("exponent")
    return "first" if isinstance(exponent, (int, float)) and exponent > 0 else "none"


def _chosen(call: Call) -> Zero:
    """Both alternatives must be zero, whatever the condition: none may bring the channel alone."""
    if call.several:
        return "none"
    made = free_leaves(call.findings.dims[call.node])
    for name in ("self", "other"):
        dims = call.dims(name)
        plain = _is_zero(call.get(name))
        if not plain and (dims is None or not made <= free_leaves(dims)):
            return "none"
    free = free_leaves(call.dims("condition") or ())
    return "none" if made & free else "carried"


def _divided(call: Call) -> Zero:
    return "first" if isinstance(call.get("self"), fx.Node) else "none"


def _filled_in(call: Call) -> Zero:
    return "first" if _is_zero(call.get("value")) else "none"


def _full(call: Call) -> Zero:
    value = call.get("fill_value", call.get("value", call.get("s")))
    return "always" if _is_zero(value) else "none"


@rule("add", "sub", "rsub", "maximum", "minimum", "max.other", "min.other", "fmax", "fmin", "lerp",
      "hypot", "copy", "subtract", zero="all")  # fmt: skip
@rule("mul", "multiply", "logical_and", "bitwise_and", "__and__", zero="any")
@rule(
    "relu", "relu6", "gelu", "silu", "tanh", "hardswish", "leaky_relu", "elu", "celu", "selu",
    "mish", "neg", "negative", "abs", "absolute", "sqrt", "square", "sin", "tan", "asin", "atan",
    "sinh", "asinh", "atanh", "arcsin", "arctan", "arcsinh", "arctanh", "erf", "erfinv", "expm1",
    "log1p", "sign", "sgn", "floor", "ceil", "round", "trunc", "fix", "frac", "rrelu", "deg2rad",
    "rad2deg", "dropout", "feature_dropout", "native_dropout", "clone", "contiguous", "alias",
    "detach", "to", "_to_copy", "type_as", "nan_to_num", "hardshrink", "softshrink", "positive",
    "lift_fresh", "lift_fresh_copy", "lift", "real", "imag", "div", "divide", "true_divide",
    "floor_divide", "resolve_conj", "resolve_neg", "_conj", "conj",
    "conj_physical", "int_repr", "dequantize", "pin_memory", "copysign", zero="first",
)  # fmt: skip
@rule("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", zero=_clamped)
@rule("threshold", zero=_thresholded)
@rule("pow", "float_power", zero=_power)
@rule("fmod", "remainder", zero=_divided)
@rule("where", zero=_chosen)
@rule("masked_fill", zero=_filled_in)
@rule("fill", zero=_full)
@rule("zero", zero="always")
@rule(
    "sigmoid", "hardsigmoid", "softplus", "exp", "exp2", "log", "log2", "log10", "cos", "cosh",
    "acos", "acosh", "arccos", "reciprocal", "rsqrt", "log_sigmoid", "eq", "ne", "lt", "le", "gt",
    "ge", "less", "less_equal", "greater", "greater_equal", "not_equal", "logical_not",
    "logical_or", "logical_xor", "bitwise_not", "bitwise_or", "bitwise_xor", "__or__", "__xor__",
    "bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__", "isnan", "isinf",
    "isfinite", "isclose", "signbit", "addcmul", "addcdiv", "atan2", "arctan2", "angle", "erfc",
    "lgamma", "digamma", "bernoulli", "normal", "uniform", "exponential", "logit", "sinc",
    "heaviside", "xlogy", "special_expit", "special_xlogy", "polar", "complex", "logaddexp",
    "logaddexp2", "ldexp", "i0", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip
def _entrywise(call: Call) -> Dims:
    return call.broadcast(call.operands, call.shape)


@rule("prelu", "_prelu_kernel", zero="first")
def _prelu(call: Call) -> Dims:
    data, slope = call.need("self"), call.need("weight")
    channel = 1 if len(data) > 1 else 0
    if len(slope) == 1 and slope[0].size > 1:
        call.unify(data[channel], slope[0])
    return data


@rule("zeros", "zeros_like", "new_zeros", zero="always")
@rule("full", "full_like", "new_full", zero=_full)
@rule("ones", "ones_like", "new_ones", "scalar_tensor", "empty", "empty_like", "new_empty")
def _filled(call: Call) -> Dims:
    """Tensors of one value have no extent of their own: they fit whatever they meet."""
    like = call.dims("self") if call.name.endswith("_like") else None
    return list(like) if like is not None else [Term(size) for size in call.shape]


@rule("rand_like", "randn_like", "randint_like")
def _noise(call: Call) -> Dims:
    return list(call.need("self"))


@rule(
    "arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm", "tril_indices",
    "triu_indices", "bartlett_window", "blackman_window", "hamming_window", "hann_window",
    "kaiser_window", "fft_fftfreq", "fft_rfftfreq", "empty_strided", "new_empty_strided",
    "affine_grid_generator",
)  # fmt: skip
def _made_of_positions(call: Call) -> Dims:
    return [call.fixed(size, f"{call.name} makes values by position") for size in call.shape]
