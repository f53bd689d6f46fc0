"""Watching a run: what a command line or a notebook may show while training goes on."""

from __future__ import annotations


class Watcher:
    """Is told how a run gets on; this one keeps quiet, subclasses show what they like."""

    def begin(self, phase: str, steps: int, done: int = 0) -> None:
        """Begin a phase of so many optimiser steps, of which some may be done already."""

    def step(self, phase: str, loss: float, achieved: float | None) -> None:
        """Note one optimiser step; ``achieved`` is the budget's currency, None when dense."""

    def epoch(self, phase: str, row: dict[str, float]) -> None:
        """Note the end of an epoch with its losses and accuracy."""

    def note(self, text: str) -> None:
        """Say something that the user should know."""

    def end(self, phase: str) -> None:
        """End a phase."""
