"""What has no meaning without a training is refused, and names the part."""

from __future__ import annotations

import pytest

from secateur import SecateurError, Technique
from secateur.sparsify import refuse_untrained


@pytest.mark.parametrize(
    ("technique", "part"),
    [
        ("weight | local | movement | one_shot", "'movement'"),
        ("weight | local | learned | one_shot", "'learned'"),
        ("filter | global | bn_scale | one_shot | keep | l1_scale", "'l1_scale"),
        ("weight | local | magnitude | one_shot | rewind(step=0)", "'rewind"),
        ("layer | global | random | one_shot | keep(drop=0.2)", "'keep\\(drop=0.2\\)'"),
        ("weight | local | magnitude | constant(every=5, mask=reselected)", "'constant"),
        ("weight | local | magnitude | piecewise(points=[[0.5, 1], [1, 0]])", "'piecewise"),
    ],
)
def test_what_needs_a_training_is_refused(technique: str, part: str) -> None:
    with pytest.raises(SecateurError, match=f"{part}.*no training"):
        refuse_untrained(Technique.parse(technique))


@pytest.mark.parametrize(
    "technique",
    [
        "weight | local | obs | one_shot | compensate(sparsegpt)",
        "weight | row | wanda | iterative(n=4)",
        "filter | global | taylor | one_cycle",
    ],
)
def test_what_looks_at_data_alone_is_let_through(technique: str) -> None:
    refuse_untrained(Technique.parse(technique))
