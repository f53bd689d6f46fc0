"""The models of the zoo: their names, and how each is built from its name alone.

A plain name is torchvision's, ``timm:NAME`` timm's, ``transformers:CONFIG`` a small model of a
configuration class of transformers. Weights are drawn, never downloaded.

    python benchmarks/zoo_models.py        # chooses the smallest model of each timm module anew
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHOICE = Path(__file__).with_name("zoo_timm.json")
CONFIGS = ("bert", "gpt2", "llama", "vit", "t5", "clip", "whisper")

# What make test runs: one of each kind of structure, and none that takes long.
SAMPLE = (
    "resnet18",  # residual sums, batch norm
    "densenet121",  # nested concatenation
    "shufflenet_v2_x0_5",  # channel shuffle, chunk
    "mobilenet_v3_small",  # depthwise, squeeze-excitation
    "googlenet",  # parallel branches, auxiliary heads
    "regnet_x_400mf",  # grouped convolution
    "swin_t",  # shifted windows, relative positions
    "lraspp_mobilenet_v3_large",  # segmentation: a dict, two resolutions
    "ssdlite320_mobilenet_v3_large",  # detection: a list of dicts, data-dependent sizes
    "raft_small",  # recurrence, correlation, two inputs
    "timm:deit_tiny_patch16_224",  # class token, fused attention
    "timm:xcit_nano_12_p8_224",  # attention over channels
    "timm:coat_tiny",  # parallel attention, sums of scales
    "timm:sequencer2d_s",  # LSTM
    "timm:halonet_h1",  # unfolded neighbourhoods
    "timm:nf_regnet_b0",  # standardised weights, gains of no dimension
    "transformers:gpt2",  # tied embedding, fused projections
    "transformers:llama",  # grouped queries, rotation, gates
    "transformers:t5",  # encoder and decoder, shared position bias
    "transformers:whisper",  # convolution over time, cross-attention
)

# Sizes a configuration is given where it has the field: wide enough for budgets of 1 %.
_SMALL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "d_model": 128, "d_ff": 256, "d_kv": 32, "num_layers": 3, "num_decoder_layers": 3,
    "num_heads": 4, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256,
    "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32,
    "image_size": 64, "patch_size": 16, "projection_dim": 64,
}  # fmt: skip
# The first of these that knows a configuration gives the model its heads.
_HEADS = (
    "AutoModelForZeroShotImageClassification",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModel",
)


def torchvision_names() -> list[str]:
    """Return the names of all float models of torchvision."""
    models = importlib.import_module("torchvision.models")
    return sorted(
        name
        for name in models.list_models()
        if ".quantization" not in models.get_model_builder(name).__module__
    )


def timm_names() -> list[str]:
    """Return one name per module of timm: the committed choice, see ``smallest``."""
    modules = json.loads(CHOICE.read_text(encoding="utf-8"))["modules"]
    return [f"timm:{name}" for name in modules.values()]


def transformers_names() -> list[str]:
    """Return the configurations of transformers that the zoo holds."""
    return [f"transformers:{name}" for name in CONFIGS]


def all_names() -> list[str]:
    """Return every name of the zoo."""
    return [*torchvision_names(), *timm_names(), *transformers_names()]


def module_of(name: str) -> str:
    """Return the Python module that a model's builder lives in.

    Raises ValueError for a name that no library knows.
    """
    library, _, rest = name.rpartition(":")
    if library == "timm":
        timm = importlib.import_module("timm")
        if rest.partition(".")[0] not in timm.list_models():
            raise ValueError(f"'{name}': timm has no such model")
        return str(timm.model_entrypoint(rest).__module__)
    if library == "transformers":
        types = importlib.import_module("transformers").CONFIG_MAPPING
        if rest not in types:
            raise ValueError(f"'{name}': transformers has no such configuration")
        return str(types[rest].__module__)
    models = importlib.import_module("torchvision.models")
    if library or rest not in models.list_models():
        raise ValueError(
            f"'{name}': expected a name of torchvision, timm:NAME or transformers:CONFIG"
        )
    return str(models.get_model_builder(rest).__module__)


def build(name: str) -> nn.Module:
    """Build a model in eval mode, the same one every time."""
    module_of(name)
    library, _, rest = name.rpartition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module
        if library == "timm":
            model = importlib.import_module("timm").create_model(rest)
        elif library == "transformers":
            model = _transformer(rest)
        else:
            models = importlib.import_module("torchvision.models")
            known = inspect.signature(models.get_model_builder(rest)).parameters
            none = {"weights": None, "weights_backbone": None}
            model = models.get_model(rest, **{key: none[key] for key in none if key in known})
    return model.eval()


def perturb(model: nn.Module) -> None:
    """Move every parameter and norm statistic off the special value it starts with.

    Biases of 0, norm scales of 1 and layer scales near 0 would hide what a removal gets wrong.
    """
    random = torch.Generator().manual_seed(1)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=random).to(tensor)

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            size = 1.0 if parameter.dim() < 2 else float(parameter.square().mean().sqrt()) or 0.2
            parameter.add_(noise(parameter), alpha=0.1 * size)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(noise(buffer), alpha=0.1)
            elif name.endswith("running_var"):
                buffer.mul_((0.2 * noise(buffer)).exp())


def _transformer(kind: str) -> nn.Module:
    """Build a small model of a configuration class, with heads where transformers knows some."""
    transformers = importlib.import_module("transformers")
    config = transformers.AutoConfig.for_model(kind)
    for part in _configs(config):
        for key, value in _SMALL.items():
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, value)
        size = getattr(part, "vocab_size", None)
        for key, value in list(vars(part).items()):
            if key.endswith("token_id") and isinstance(value, int) and size and value >= size:
                setattr(part, key, size - 1)
        part.use_cache = False
    # Some classes work the head width out when they are made; it has to follow the new sizes.
    for part in _configs(config):
        if isinstance(getattr(part, "head_dim", None), int):
            part.head_dim = part.hidden_size // part.num_attention_heads
    for head in _HEADS:
        auto = getattr(transformers, head)
        if type(config) in auto._model_mapping:
            model: nn.Module = auto.from_config(config)
            return model
    raise ValueError(f"'transformers:{kind}': no model class knows this configuration")


def _configs(config: Any) -> Iterator[Any]:
    """Yield a configuration and those inside it."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _configs(value)


def smallest() -> dict[str, str]:
    """Return the name of the model with the fewest parameters of each timm module.

    Models are built without data. Names that begin with ``test_`` are timm's own fixtures and do
    not count; the alphabet decides between equals.
    """
    timm = importlib.import_module("timm")
    found = {}
    for module in timm.list_modules():
        sizes = []
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                with torch.device("meta"):
                    model = timm.create_model(name)
                sizes.append((sum(each.numel() for each in model.parameters()), name))
        if sizes:
            found[module] = min(sizes)[1]
    return found


def main() -> None:
    """Write the choice of timm models."""
    version = importlib.import_module("timm").__version__
    text = json.dumps({"timm": version, "modules": smallest()}, indent=1)
    CHOICE.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {CHOICE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
