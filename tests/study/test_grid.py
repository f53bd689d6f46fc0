"""Study files: what a grid is made of, and every mistake told in the writer's own words."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.study import Cell, Study

ONE = "techniques: [weight | local | magnitude | agp]\n"


def names(study: Study) -> list[str]:
    return [cell.name for cell in study.cells]


def test_the_grid_is_the_product_with_its_baselines():
    study = Study.parse(
        "techniques:\n"
        "  a: weight | local | magnitude | agp\n"
        "  b: weight | local | magnitude | one_cycle\n"
        "  c: filter | global | taylor | one_shot\n"
        "budgets: {sparsity: [0.5, 0.9], macs: 0.4}\n"
        "seeds: [3, 5]\n"
        "models: {small: cnn, other: {model: cnn, learning_rate: 0.1}}\n"
    )
    assert study.reference == "a"
    # Three techniques and random scores for two granularities, at three budgets; and dense.
    assert len(study.cells) == 2 * 2 * ((3 + 2) * 3 + 1)
    assert len(set(names(study))) == len(study.cells)
    roles = [cell.role for cell in study.cells]
    assert (roles.count("dense"), roles.count("random")) == (4, 2 * 3 * 4)
    random = {cell.technique: cell for cell in study.cells if cell.role == "random"}
    assert set(random) == {"random weight", "random filter"}
    assert str(random["random filter"].settings.found_technique) == (
        "filter | global | random | one_shot"
    )
    dense = [cell for cell in study.cells if cell.role == "dense"]
    assert {cell.settings.sparsity for cell in dense} == {0.0}
    rates = {cell.model: cell.settings.rate for cell in dense}
    assert rates == {"small": 2e-3, "other": 0.1}
    # The first seed is whole before the second begins.
    assert [cell.settings.seed for cell in study.cells] == sorted(
        cell.settings.seed for cell in study.cells
    )


def test_a_random_technique_of_ones_own_is_the_baseline():
    study = Study.parse(
        "techniques: [weight | local | random | agp, weight | local | magnitude | agp]"
    )
    assert [cell.role for cell in study.cells].count("random") == 0


def test_a_technique_that_brings_its_budget_runs_once():
    study = Study.parse(
        'techniques: ["2:4 | local | magnitude | one_shot"]\nbudgets: {macs: [0.3, 0.6]}'
    )
    mine = [cell for cell in study.cells if cell.role == "technique"]
    assert [(cell.currency, cell.budget) for cell in mine] == [("", None)] * 3


def test_techniques_that_learn_from_the_dense_network_have_it():
    study = Study.parse(
        "techniques: [weight | local | magnitude | agp | keep | distillation]\nseeds: 1"
    )
    assert [cell.settings.baseline for cell in study.cells] == [False, False, True]


def test_the_name_of_a_cell_follows_what_decides_its_result():
    text = ONE + "seeds: 1\ntraining: {epochs: 2}\n"
    base = names(Study.parse(text))
    labelled = (
        "techniques: {x: weight | local | magnitude | agp}\nseeds: 1\ntraining: {epochs: 2}\n"
    )
    assert names(Study.parse(labelled + "title: another")) == base
    for other in (
        text.replace("epochs: 2", "epochs: 3"),
        text.replace("seeds: 1", "seeds: [1]"),
        text + "data: {d: {data: digits, limit: 9}}",
        text + "models: [resnet18]",
    ):
        assert not set(names(Study.parse(other))) & set(base)


def test_the_name_of_a_cell_follows_the_content_of_its_weights(tmp_path):
    file = tmp_path / "w.safetensors"
    text = ONE + f"seeds: 1\nmodels: {{m: {{model: cnn, weights: {file}}}}}"
    found = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        found.append(names(Study.parse(text)))
    assert found[0] == found[2]
    assert not set(found[0]) & set(found[1])


def test_a_cell_survives_json():
    for cell in Study.parse(ONE + "training: {include: ['features.*']}").cells:
        assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("techniqes: [x]", "a study has no 'techniqes': did you mean techniques?"),
        ("title: none", "a study needs techniques"),
        ("techniques: []", "at least one"),
        ("techniques: [wieght | local | magnitude | agp]", "'wieght': did you mean weight?"),
        ("techniques: [filter | row | magnitude | agp]", "filter | row"),
        ("techniques: [no_such_name]", "no_such_name"),
        ("techniques: {a: 3}", "'a' is '3'"),
        ("techniques: {dense: one_cycle}", "'dense' is kept for a baseline"),
        ("techniques: {random x: one_cycle}", "kept for a baseline"),
        ("techniques: {a: one_cycle, a: lamp}", "line 1: the key 'a' is given twice"),
        ("techniques: {1: one_cycle}", "the key '1' is not a text"),
        ("techniques: [one_cycle, one_cycle]", "'one_cycle' is given twice"),
        ("techniques: {a: one_cycle, b: weight | local | magnitude | one_cycle}", "are the same"),
        (ONE + "reference: b", "the reference 'b' is no technique"),
        (ONE + "budgets: {sparsity: [90]}", "sparsity '90' should be a fraction"),
        (ONE + "budgets: {sparsity: ['0.9']}", "sparsity '0.9' is not a number"),
        (ONE + "budgets: {sparsity: [0.9, 0.90]}", "sparsity '0.9' is given twice"),
        (ONE + "budgets: {flops: [0.9]}", "budgets has no 'flops'"),
        (ONE + "budgets: {}", "budgets are empty"),
        (ONE + "budgets: {sparsity: [.nan]}", "sparsity 'nan' should be a fraction"),
        (ONE + "seeds: 0", "seeds is '0'"),
        (ONE + "seeds: [1, 1]", "'1' is given twice"),
        (ONE + "seeds: [-1]", "'-1' should be"),
        (ONE + "seeds: yes", "seeds is 'True'"),
        (ONE + "models: {m: {weights: x}}", "names no model"),
        (ONE + "models: [{model: cnn}]", "a mapping is not a text"),
        (ONE + "models: {m: {model: cnn, weights: nowhere.safetensors}}", "'nowhere.safetensors'"),
        (ONE + "data: {d: {data: digits, limit: many}}", "limit is 'many': expected a whole"),
        (ONE + "training: {epoch: 3}", "training has no 'epoch': did you mean epochs?"),
        (ONE + "training: {epochs: 0}", "epochs is 0"),
        (ONE + "training: {epochs: 2.5}", "epochs is '2.5': expected a whole number"),
        (ONE + "training: [3]", "training is a mapping from names to values, not a list"),
        (ONE + "models: {a: cnn, b: cnn}", "are the same run under two labels"),
        (ONE + "title: [x]", "title is a list: expected a text"),
        (ONE + "seeds: 9000\nbudgets: {sparsity: [0.5, 0.6]}", "at most 10,000 are run"),
        ("techniques: &a [one_cycle]\nseeds: *a", "line 2: references (*a)"),
        ("techniques: !!python/object:os.system [x]", "line 1: this is not YAML"),
        ("techniques: [", "this is not YAML"),
        ('techniques: ["\\UFFFFFFFF"]', "this is not YAML"),
        ("", "a study file is a mapping"),
        ("- x", "a study file is a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_quoted(text, said, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SecateurError) as caught:
        Study.read(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * 100_000])
def test_what_is_no_study_file_is_refused(content, tmp_path):
    (tmp_path / "a.yaml").write_bytes(content)
    for path in (tmp_path / "a.yaml", tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(SecateurError, match=path.name) as caught:
            Study.read(path)
        assert str(caught.value).count(path.name) == 1


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_secateur_error(text):
    for written in (text, ONE + text, f"{ONE}title: {text}"):
        with contextlib.suppress(SecateurError):
            assert Study.parse(written).cells
