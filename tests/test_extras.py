"""Optional libraries: what is missing is named, and nothing reports its use unasked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from secateur import SecateurError
from secateur.extras import need


def test_a_missing_library_is_named_with_its_extra() -> None:
    with pytest.raises(SecateurError, match=r"counting needs no_such_library.*secateur\[study\]"):
        need("no_such_library.part", "study", "counting")


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_is_kept_from_reporting_unless_allowed(before: str | None, after: str) -> None:
    """The variable is set before the import, and left as it is where somebody has set it."""
    pytest.importorskip("onnxruntime")
    code = (
        "import os, sys; from secateur.extras import need; assert 'onnxruntime' not in sys.modules;"
        "need('onnxruntime', 'export', 'a test'); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == after
