"""Draw docs/schedules.svg: run `python docs/draw_schedules.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from secateur import Schedule

STYLE = {"svg.hashsalt": "secateur", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "axes.linewidth": 0.8, "legend.frameon": False,
         "legend.labelcolor": "linecolor"}  # fmt: skip
TIMES = [place / 200 for place in range(201)]
RISING = {"agp": "#3f9470", "linear": "#7d8983", "cosine": "#7488b5", "one_cycle": "#b0573e",
          "exponential": "#a68a2d"}  # fmt: skip
OTHERS = {"dsd": "#3f9470", "iterative(n=3)": "#b0573e", "one_shot(start=0.5)": "#7488b5"}


def main() -> None:
    """Write the picture beside this script."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, RISING, "rising")
        _draw(right, OTHERS, "in steps, and falling")
        left.set_ylabel("share of the budget claimed")
        figure.savefig(Path(__file__).with_name("schedules.svg"), metadata={"Date": None})


def _draw(axes: Axes, curves: dict[str, str], title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("share of training done")
    for text, colour in curves.items():
        schedule = Schedule.parse(text)
        shares = [schedule.at(time) for time in TIMES]
        axes.plot(TIMES, shares, color=colour, linewidth=1.6, label=text.partition("(")[0])
    axes.legend(loc="upper left", borderaxespad=0, handlelength=1.2)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.01, 1.03)


if __name__ == "__main__":
    main()
