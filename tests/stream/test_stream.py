"""Streaming: equal to pruning in memory, whatever stops it, and refused where it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from secateur import SecateurError, Sparsifier
from secateur.stream import BlockDone, find_blocks, prune_stream
from secateur.stream.files import INDEX, open_weights

WANDA = "weight | row | wanda | one_shot"
SPARSEGPT = "weight | local | obs | one_shot | compensate(sparsegpt)"
CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=60, n_positions=32,
                       bos_token_id=0, eos_token_id=0),
    "opt": OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=60,
        max_position_embeddings=32, word_embed_proj_dim=32,
    ),
}  # fmt: skip


def build(name: str) -> Callable[[], nn.Module]:
    return lambda: AutoModelForCausalLM.from_config(CONFIGS[name])


def saved(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Write a random model in several shards and return it."""
    torch.manual_seed(0)
    model: nn.Module = build(name)().to(dtype).eval()
    model.save_pretrained(folder, max_shard_size="20KB")  # type: ignore[operator]
    return model


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 60, (2, 12), generator=generator)} for _ in range(count)]


def in_memory(model: nn.Module, technique: str) -> nn.Module:
    """The same by hand: every block with the inputs that reach it through pruned blocks."""
    model.config.use_cache = False  # type: ignore[union-attr]
    for block in find_blocks(model)[1]:
        seen: list[dict[str, Any]] = []

        def see(_: nn.Module, args: Any, kwargs: Any, seen: list[Any] = seen) -> None:
            seen.append({"hidden_states": args[0], **dict(zip(
                ("past_key_values", "attention_mask", "encoder_hidden_states"), args[1:],
                strict=False)), **kwargs})  # fmt: skip

        handle = block.register_forward_pre_hook(see, with_kwargs=True)
        with torch.no_grad():
            for batch in batches():
                model(**batch)
        handle.remove()
        Sparsifier(block, technique, sparsity=0.5, data=seen).step(1.0)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("technique", [WANDA, SPARSEGPT])
def test_it_is_what_blocks_in_memory_become(tmp_path: Path, name: str, technique: str) -> None:
    model = saved(tmp_path / "dense", name)
    told: list[BlockDone] = []
    result = prune_stream(
        build(name), tmp_path / "dense", tmp_path / "sparse", technique, sparsity=0.5,
        data=batches(), progress=told.append,
    )  # fmt: skip
    assert result.blocks == tuple(told) and [block.place for block in told] == [0, 1, 2]
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(0 < block.error < 1 for block in told)
    expected = in_memory(model, technique)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    saved(tmp_path / "dense")

    def stop(done: BlockDone) -> None:
        if done.place == 1:
            raise KeyboardInterrupt

    def run(target: str, progress: Any = None, **changes: Any) -> Any:
        options = {"technique": SPARSEGPT, "sparsity": 0.5, "data": batches()} | changes
        return prune_stream(build("llama"), tmp_path / "dense", tmp_path / target,
                            progress=progress, **options)  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    assert not (tmp_path / "stopped" / INDEX).exists()
    for changes, what in (
        ({"technique": WANDA}, "technique"), ({"sparsity": 0.4}, "options"),
        ({"data": batches(2)}, "data"),
    ):  # fmt: skip
        with pytest.raises(SecateurError, match=f"its {what} differs"):
            run("stopped", **changes)
    seen: list[int] = []
    run("stopped", lambda done: seen.append(done.place))
    assert seen == [2]
    run("whole")
    for shard in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert shard.read_bytes() == (tmp_path / "stopped" / shard.name).read_bytes()
    assert not list((tmp_path / "stopped").glob("*carried*"))
    assert len(run("whole", pytest.fail).blocks) == 3  # nothing is left to do


def test_what_is_outside_of_the_blocks_is_copied(tmp_path: Path) -> None:
    saved(tmp_path / "dense", dtype=torch.bfloat16)
    prune_stream(build("llama"), tmp_path / "dense", tmp_path / "sparse", SPARSEGPT, sparsity=0.5,
                 data=batches(), dtype=torch.float32)  # fmt: skip
    before, after = (open_weights(tmp_path / folder) for folder in ("dense", "sparse"))
    assert before.keys() == after.keys()
    for name, stored in before.items():
        assert after[name].dtype == torch.bfloat16
        pruned = "proj" in name
        assert torch.equal(stored.read(), after[name].read()) != pruned, name
    assert json.loads((tmp_path / "sparse" / "config.json").read_text())["hidden_size"] == 32


def test_files_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    saved(tmp_path / "dense", dtype=torch.bfloat16)
    for path in (tmp_path / "dense").glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            stored = open_weights(path)[name]
            assert torch.equal(stored.read(), tensor) and torch.equal(stored.mapped(), tensor)


def test_names_with_and_without_the_first_part(tmp_path: Path) -> None:
    """A checkpoint of the model beneath the head has no 'model.' before its names."""
    from safetensors.torch import save_file

    model = saved(tmp_path / "dense")
    (tmp_path / "bare").mkdir()
    bare = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}  # type: ignore[union-attr,operator]
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    prune_stream(build("llama"), tmp_path / "bare", tmp_path / "sparse", WANDA, sparsity=0.5,
                 data=batches())  # fmt: skip
    assert open_weights(tmp_path / "sparse").keys() == bare.keys()


@pytest.mark.parametrize(
    ("technique", "named"),
    [
        ("weight | global | wanda | one_shot", "'global'"),
        ("weight | local(owl) | wanda | one_shot", "owl"),
        ("weight | local | snip | one_shot", "snip"),
        ("weight | local | network_obs | one_shot", "network_obs"),
        ("weight | local | wanda | one_shot | compensate(network)", "network"),
        ("2:4(order=assigned) | local | wanda | one_shot", "order=given"),
        ("weight | local | magnitude | one_shot | rewind(step=0)", "rewind"),
        ("weight | local | magnitude | one_shot | keep | l1_scale", "l1_scale"),
        ("weight | local | magnitude | piecewise(points=[[0, 0], [1, 0]])", "nothing removed"),
    ],
)
def test_what_needs_more_than_a_block_is_refused(
    tmp_path: Path, technique: str, named: str
) -> None:
    with pytest.raises(SecateurError, match=named):
        prune_stream(build("llama"), tmp_path, tmp_path / "sparse", technique, sparsity=0.5,
                     data=batches())  # fmt: skip
    assert not (tmp_path / "sparse").exists()


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    def run(source: Path, **changes: Any) -> None:
        options = {"build": build("llama"), "data": batches()} | changes
        prune_stream(options["build"], source, tmp_path / "sparse", WANDA, sparsity=0.5,
                     data=options["data"])  # fmt: skip

    with pytest.raises(SecateurError, match="holds no safetensors"):
        run(tmp_path)
    (tmp_path / "odd.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SecateurError, match="not a safetensors file"):
        run(tmp_path)
    saved(tmp_path / "dense")
    with pytest.raises(SecateurError, match="no batch"):
        run(tmp_path / "dense", data=[])
    with pytest.raises(SecateurError, match="none of the tensors"):
        run(tmp_path / "dense", build=lambda: nn.ModuleList(nn.Linear(2, 2) for _ in range(3)))
    with pytest.raises(SecateurError, match=r"no nn\.ModuleList"):
        run(tmp_path / "dense", build=lambda: nn.Sequential(nn.Linear(2, 2)))
    index = tmp_path / "dense" / INDEX
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(SecateurError, match="outside of its folder"):
        run(tmp_path / "dense")


def test_the_target_is_never_the_source(tmp_path: Path) -> None:
    saved(tmp_path / "dense")
    with pytest.raises(SecateurError, match="holds the source"):
        prune_stream(build("llama"), tmp_path / "dense", tmp_path / "dense", WANDA, sparsity=0.5,
                     data=batches())  # fmt: skip


def test_blocks_are_the_longest_list_of_like_modules() -> None:
    experts = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(9))})
        for _ in range(4)
    )
    model = nn.ModuleDict({
        "blocks": experts, "mixed": nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), *[nn.GELU()] * 9]),
    })  # fmt: skip
    assert find_blocks(model)[0] == "blocks"
