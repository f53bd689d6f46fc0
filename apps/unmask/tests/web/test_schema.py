"""schemathesis reads the OpenAPI description and tries to break what it promises."""

from __future__ import annotations

import os

import pytest

schemathesis = pytest.importorskip("schemathesis")

import httpx  # noqa: E402
from conftest import HERE, eventually  # noqa: E402
from hypothesis import HealthCheck  # noqa: E402
from hypothesis import settings as hypothesis_settings  # noqa: E402

from unmask.web.app import create_app  # noqa: E402
from unmask.web.settings import Settings  # noqa: E402

checks = schemathesis.checks
schema = schemathesis.openapi.from_dict(
    create_app(Settings(engine="engines:make", models=HERE / "models.json")).openapi()
)


@pytest.fixture(scope="module")
def ready(address):
    eventually(lambda: httpx.get(address + "/api/v1/health").json()["ready"])
    return address


@schema.parametrize()
@hypothesis_settings(
    max_examples=int(os.environ.get("SCHEMA_EXAMPLES", "25")), deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_answers_are_as_described(case, ready):
    case.call_and_validate(
        base_url=ready,
        # Any bytes are a valid "file" of the description; the server looks at what they are.
        excluded_checks=[checks.positive_data_acceptance],
    )
