"""The report: one HTML file that shows what a compression did and what it cost."""

from __future__ import annotations

from secateur.report.html import render

__all__ = ["render"]
