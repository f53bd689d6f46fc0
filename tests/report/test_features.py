from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from secateur import SecateurError
from secateur.report.features import features_svg


def test_every_kept_feature_is_a_square_over_the_image():
    kept = torch.tensor([[True, False, True], [False, False, True]])
    svg = features_svg(kept, torch.rand(2, 3), title="<mean> & map")
    root = ElementTree.fromstring(svg)
    squares = [each for each in root.iter("path") if "var(--series2" in each.get("style", "")]
    assert len(squares) == 3
    assert root.find(".//image") is not None
    assert "3 of 6 features are read" in root.get("aria-label", "")
    assert "&lt;mean&gt; &amp; map" in svg


def test_more_kept_features_are_more_squares():
    image = torch.zeros(4, 4)
    none = features_svg(torch.zeros(4, 4, dtype=torch.bool), image)
    every = features_svg(torch.ones(4, 4, dtype=torch.bool), image)
    assert none.count("var(--series2") == 0
    assert every.count("var(--series2") == 16


@pytest.mark.parametrize(
    ("kept", "image"), [((2, 3), (3, 2)), ((6,), (6,)), ((0, 3), (0, 3)), ((600, 600), (600, 600))]
)
def test_a_map_that_does_not_fit_is_refused(kept, image):
    with pytest.raises(SecateurError, match="expected two equal"):
        features_svg(torch.ones(kept, dtype=torch.bool), torch.zeros(image))
