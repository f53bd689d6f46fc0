from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.report import text


@pytest.mark.parametrize(
    ("value", "largest", "expected"),
    [
        (None, 0, "–"),
        (0, 0, "0\u00a0B"),
        (999, 0, "999\u00a0B"),
        (1000, 0, "1.00\u00a0kB"),
        (53_554, 0, "53.6\u00a0kB"),
        (999_600, 0, "1.00\u00a0MB"),
        (53_554, 2_000_000, "0.0536\u00a0MB"),
        (1.5e20, 0, "150,000\u00a0PB"),
    ],
)
def test_size(value, largest, expected):
    assert text.size(value, largest) == expected


@pytest.mark.parametrize(
    ("value", "largest", "expected"),
    [
        (None, 0, "–"),
        (0, 0, "0"),
        (999_999, 0, "999,999"),
        (25_557_032, 0, "25.6\u00a0M"),
        (204_567, 1_234_567, "0.205\u00a0M"),
        (4_089_184_256, 0, "4.09\u00a0G"),
    ],
)
def test_count(value, largest, expected):
    assert text.count(value, largest) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0.0, "0\u00a0ms"),
        (0.01234, "0.0123\u00a0ms"),
        (1.2345, "1.23\u00a0ms"),
        (123.45, "123\u00a0ms"),
        (12345.6, "12,346\u00a0ms"),
        (1e-7, "1e−07\u00a0ms"),
    ],
)
def test_milliseconds(value, expected):
    assert text.milliseconds(value) == expected


def test_clean_leaves_only_what_json_can_say():
    given = {
        1: (math.nan, math.inf, np.float32(0.5), np.int64(3), True, None),
        "a\x00b": {"deep": ["x\ud800y\n", {1}]},
    }
    assert text.clean(given) == {
        "1": [None, None, 0.5, 3, True, None],
        "a\ufffdb": {"deep": ["x\ufffdy\n", "{1}"]},
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        ("", "–"),
        ({}, "–"),
        (0, "0"),
        (0.1 + 0.2, "0.3"),
        (["a", None, 1.5], "a, –, 1.5"),
        ({"a": {"b": 1}, "c": None}, "a b 1 · c –"),
    ],
)
def test_line(value, expected):
    assert text.line(value) == expected


def test_number_takes_finite_numbers_only():
    assert text.number(3) == 3.0
    assert [text.number(x) for x in (True, "3", None, math.nan, -math.inf, 10**400)] == [None] * 6
