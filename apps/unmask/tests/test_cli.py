from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pictures
import pytest
from stand_ins import PLACE, Network

from unmask import UnmaskError, cli, evaluate, models, samples

Run = Callable[..., tuple[int, str, str]]
SCORE = {"clear.png": 0.1, "signs.png": 0.9, "open.png": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one picture per verdict, told apart by their brightness."""
    folder = tmp_path_factory.mktemp("files")
    portrait = samples.draw((640, 480), (PLACE,), seed=3)
    for shade, name in enumerate(SCORE):
        pictures.save(folder / name, (portrait // (1 + shade)).astype(portrait.dtype))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def score(crop: Any) -> float:
        mean = float(crop.mean())
        return 0.1 if mean > 110 else 0.9 if mean > 55 else 0.5

    monkeypatch.setattr(models, "load", lambda name, threads=1: Network(score))
    monkeypatch.setenv("COLUMNS", "200")

    def go(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        caught = capsys.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, caught.out, caught.err

    return go


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["clear.png"], 0), (["signs.png"], 1), (["open.png"], 3), (["clear.png", "open.png"], 3),
        (["open.png", "signs.png", "clear.png"], 1), (["signs.png", "broken.jpg"], 2),
    ],
)  # fmt: skip
def test_the_exit_code_tells_the_verdict(
    run: Run, folder: Path, names: list[str], code: int
) -> None:
    found, out, err = run(*(folder / name for name in names))
    assert found == code
    assert all(name in out for name in names)
    assert err.count("\n") == names.count("broken.jpg")


def test_the_table_says_what_was_found(run: Run, folder: Path) -> None:
    _, out, _ = run("inspect", folder / "signs.png", folder / "clear.png", folder / "broken.jpg")
    assert "signs of manipulation" in out
    assert "no sign found" in out
    assert "not analysed" in out
    assert "does not mean authentic" in out


def test_json_holds_every_report_in_order(run: Run, folder: Path) -> None:
    code, out, err = run("--json", folder / "clear.png", folder / "broken.jpg", folder / "no.png")
    first, second, third = json.loads(out)
    assert code == 2
    assert first["verdict"] == "no sign found"
    assert second["error"]["code"] == "corrupt"
    assert third["error"]["code"] == "missing"
    assert err.count("\n") == 2


@pytest.mark.parametrize("name", ["no\nsuch.jpg", "../no.jpg", "no\x1b[31m.jpg", "\u202eno.jpg"])
def test_a_strange_name_stays_on_one_line(run: Run, name: str) -> None:
    code, _, err = run(name)
    assert code == 2
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()


def test_a_folder_is_no_file(run: Run, folder: Path) -> None:
    code, _, err = run(folder)
    assert code == 2
    assert "not a plain file" in err


def test_frames_have_bounds(run: Run, folder: Path) -> None:
    assert run(folder / "clear.png", "--frames", 0)[0] == 2


def test_an_unknown_option_is_wrong_usage(run: Run, folder: Path) -> None:
    assert run(folder / "clear.png", "--nonsense")[0] == 2


def test_help_names_the_exit_codes_and_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(word in out for word in ("inspect", "evaluate", "serve", "models", "samples"))
    assert "Exit codes" in run("inspect", "--help")[1]


def test_an_unknown_model_is_one_line(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str | None) -> Network:
        raise UnmaskError(f"there is no model {name!r}")

    monkeypatch.setattr(models, "load", load)
    code, out, err = run(folder / "clear.png", "--model", "x")
    assert (code, out, err) == (2, "", "unmask: there is no model 'x'\n")


def test_samples_are_drawn_and_never_overwritten(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("samples", tmp_path / "drawn")
    assert code == 0
    assert [Path(line) for line in out.splitlines()] == samples_in(tmp_path / "drawn", out)
    code, _, err = run("samples", tmp_path / "drawn")
    assert code == 2
    assert err.count("\n") == 1


def samples_in(folder: Path, out: str) -> list[Path]:
    found = {path.name: path for path in folder.iterdir()}
    assert len(found) == len(out.splitlines())
    return [found[Path(line).name] for line in out.splitlines()]


def test_samples_need_a_folder(run: Run, folder: Path) -> None:
    code, _, err = run("samples", folder / "clear.png")
    assert (code, err.count("\n")) == (2, 1)


def test_a_mistake_of_ours_does_not_exit_like_a_finding(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str | None) -> Network:
        raise ZeroDivisionError

    monkeypatch.setattr(models, "load", load)
    code, _, err = run(folder / "clear.png")
    assert code == 2
    assert "ZeroDivisionError" in err


def test_the_version_and_the_short_help(run: Run) -> None:
    assert run("--version")[:2] == (0, f"unmask {metadata.version('unmask')}\n")
    assert "evaluate" in run("-h")[1]


def test_models_are_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = SimpleNamespace(
        name="int8", title="Small", version="1", params=70_000, macs=18_000_000, bytes=112_000,
        ms=0.9, default=True, figures={"auc": [0.9, 0.8, 1.0]},
    )  # fmt: skip
    monkeypatch.setattr(models, "available", lambda: [row])
    _, out, _ = run("models")
    assert "int8 (default)" in out
    assert "112,000" in out
    assert json.loads(run("models", "--json")[1])[0]["figures"] == row.figures


def test_serve_passes_its_options_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def serve(host: str, port: int, *, tell: Callable[[str], None]) -> None:
        asked.append((host, port))
        tell("http://127.0.0.1:1/")

    module = ModuleType("unmask.web.server")
    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unmask.web.server", module)
    assert run("serve", "--port", 1)[1] == "unmask is at http://127.0.0.1:1/\n"
    assert asked == [("127.0.0.1", 1)]


def test_serve_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unmask.web.server", None)
    code, _, err = run("serve")
    assert code == 2
    assert "pip install 'unmask[web]'" in err


def test_python_dash_m_runs_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unmask", "nowhere.png"], capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_evaluate_writes_the_figures_and_names_what_failed(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "path,label,group\nclear.png,real,a\nsigns.png,fake,a\nopen.png,fake,b\nbroken.jpg,real,b\n"
    )
    out = tmp_path / "figures.json"
    code, table, err = run("evaluate", folder, "--labels", labels, "--json", out)
    assert code == 0
    figures = json.loads(out.read_text())
    assert (figures["overall"]["n_real"], figures["overall"]["n_fake"]) == (1, 2)
    assert figures["overall"]["frame_auc"][0] == 1
    assert set(figures["groups"]) == {"a", "b"}
    assert "frame_auc" in table
    assert err.startswith("unmask: broken.jpg: ")


def test_evaluate_says_what_is_wrong_in_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", folder, "--labels", tmp_path / "none.csv")
    assert code == 2
    assert err.count("\n") == 1


def test_evaluate_cannot_write_into_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nclear.png,real\nsigns.png,fake\n")
    code, _, err = run(
        "evaluate", folder, "--labels", labels, "--json", tmp_path / "no" / "figures.json"
    )
    assert code == 2
    assert "cannot be written" in err


def test_evaluate_says_so_before_it_begins(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nclear.png,real\nsigns.png,fake\n")
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("it began"))
    assert run("evaluate", folder, "--labels", labels, "--json", tmp_path)[0] == 2
