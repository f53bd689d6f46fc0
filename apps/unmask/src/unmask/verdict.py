"""From the scores of faces to a verdict in three values.

A face counts where its quality allows it. Over a video a person's score, for each claim, is the
highest mean of a run of usable sightings (an eighth of them, three at least): a mean over the
whole clip would hide a face that was changed for a second, and the highest single frame would
follow every blunder (in 150 clips made from untouched photographs it raised a false alarm in 5 %,
the run in 2 %, as often as a single photograph). The thresholds are those of single faces; between
them lies the grey band, in which nothing is said.

A file shows signs of manipulation if a person does. Otherwise it stays undecided if a person's
score lies in the grey band, or if a face that cannot be judged is not much smaller than those that
can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unmask.faces import Box

Verdict = Literal["signs of manipulation", "no sign found", "cannot say"]
SIGNS: Verdict = "signs of manipulation"
CLEAR: Verdict = "no sign found"
UNDECIDED: Verdict = "cannot say"

RUN, PART = 3, 8  # a run has three sightings at least, and an eighth of all
ENOUGH = 8  # from so many sampled frames on, a face seen once may be a mistake of the face finder
SHARE = 0.25  # of a person's sightings that must be usable before nothing is said to be found
BYSTANDER = 0.5  # a face this much smaller than the largest one that was judged leaves the verdict

NAMED = 4  # so many persons with one reason are named one by one

CLAIMS = {
    "swap": "traces of one face blended over another",
    "generated": "traces of a wholly generated face",
}


@dataclass(frozen=True)
class Band:
    """The two thresholds of a claim: under ``low`` nothing was found, from ``high`` on signs."""

    low: float
    high: float


@dataclass(frozen=True)
class Sighting:
    """A person in one frame: box in pixels, probabilities, and why it does not count, if so."""

    frame: int
    time: float
    box: Box
    swap: float
    generated: float
    reason: str | None = None

    @property
    def usable(self) -> bool:
        """Return whether the sighting counts."""
        return self.reason is None

    @property
    def score(self) -> float:
        """Return the higher of the two probabilities."""
        return max(self.swap, self.generated)

    @property
    def side(self) -> float:
        """Return the longer side of the box, in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Person:
    """One person's verdict; the scores are None where no sighting is usable."""

    id: int
    verdict: Verdict
    swap: float | None
    generated: float | None
    reasons: tuple[str, ...]
    sightings: tuple[Sighting, ...]

    @property
    def score(self) -> float | None:
        """Return the higher of the two scores."""
        known = [score for score in (self.swap, self.generated) if score is not None]
        return max(known, default=None)

    @property
    def in_band(self) -> bool:
        """Return whether the scores, and not the quality, left the person undecided."""
        return self.verdict == UNDECIDED and any(sighting.usable for sighting in self.sightings)

    @property
    def side(self) -> float:
        """Return the largest side of the person's boxes, in pixels."""
        return max(sighting.side for sighting in self.sightings)

    @property
    def clearest(self) -> Sighting:
        """Return the usable sighting with the highest score, or the first of all."""
        usable = [sighting for sighting in self.sightings if sighting.usable]
        return max(usable, key=lambda sighting: sighting.score, default=self.sightings[0])


def pool(scores: Sequence[float]) -> float:
    """Return the highest mean of a run of scores: three, or an eighth of them where that is more.

    >>> pool([0.1, 0.9, 0.8, 1.0, 0.1]), pool([0.2, 0.4])
    (0.9, 0.30000000000000004)
    """
    if not scores:
        raise ValueError("there are no scores to pool")
    width = min(max(RUN, round(len(scores) / PART)), len(scores))
    return max(
        sum(scores[start : start + width]) / width for start in range(len(scores) - width + 1)
    )


def judge(
    identity: int, sightings: Sequence[Sighting], bands: Mapping[str, Band], sampled: int = 1
) -> Person:
    """Return a person's verdict; ``sampled`` is the number of frames that were looked at."""
    usable = [sighting for sighting in sightings if sighting.usable]
    if not usable:
        ((reason, _),) = Counter(s.reason or "" for s in sightings).most_common(1)
        return Person(identity, UNDECIDED, None, None, (reason,), tuple(sightings))
    scores = {claim: pool([getattr(sighting, claim) for sighting in usable]) for claim in CLAIMS}
    verdict, reasons = _decide(scores, bands)
    if sampled >= ENOUGH and len(usable) == 1:
        verdict, reasons = UNDECIDED, ("seen well enough in one frame only",)
    elif verdict == CLEAR and len(usable) < SHARE * len(sightings):
        few = f"only {len(usable)} of {len(sightings)} sightings are good enough"
        verdict, reasons = UNDECIDED, (few,)
    return Person(identity, verdict, scores["swap"], scores["generated"], reasons, tuple(sightings))


def conclude(persons: Sequence[Person], skipped: float = 0.0) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on a file, and the reasons for it.

    ``skipped`` is the side of the largest face that was left out of a crowd, in pixels.
    """
    if not persons:
        return UNDECIDED, ("no face was found",)
    signs = [person for person in persons if person.verdict == SIGNS]
    clear = [person for person in persons if person.verdict == CLEAR]
    unsure = [person for person in persons if person.verdict == UNDECIDED]
    if signs:
        return SIGNS, _lines(signs, persons)
    largest = max((person.side for person in clear), default=0.0)
    open_ = [p for p in unsure if p.in_band or p.side >= BYSTANDER * largest]
    if open_:
        return UNDECIDED, _lines(open_, persons)
    if skipped >= max(BYSTANDER * largest, 1.0):
        return UNDECIDED, ("there are more faces of this size than were analysed",)
    aside = len(unsure)
    words = (
        "1 smaller face was not judged" if aside == 1 else f"{aside} smaller faces were not judged"
    )
    return CLEAR, (words,) if aside else ()


def _decide(
    scores: Mapping[str, float], bands: Mapping[str, Band]
) -> tuple[Verdict, tuple[str, ...]]:
    over = [claim for claim in CLAIMS if scores[claim] >= bands[claim].high]
    if over:
        return SIGNS, tuple(
            f"{CLAIMS[claim]}: score {scores[claim]:.2f}, threshold {bands[claim].high:.2f}"
            for claim in over
        )
    between = [claim for claim in CLAIMS if scores[claim] >= bands[claim].low]
    if between:
        return UNDECIDED, tuple(
            f"{CLAIMS[claim]}: score {scores[claim]:.2f} lies in the grey band "
            f"({bands[claim].low:.2f} to {bands[claim].high:.2f})"
            for claim in between
        )
    return CLEAR, ()


def _lines(chosen: Sequence[Person], persons: Sequence[Person]) -> tuple[str, ...]:
    """Return the reasons of persons, each once: in a crowd many are too small."""
    shared: dict[str, list[int]] = {}
    for person in chosen:
        shared.setdefault("; ".join(person.reasons), []).append(person.id)
    if len(persons) == 1:
        return tuple(shared)
    return tuple(f"{_named(ids)}: {what}" for what, ids in shared.items())


def _named(ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return f"person {ids[0]}"
    shown, more = ids[:NAMED], len(ids) - NAMED
    last = f"{more} more" if more > 0 else f"{shown[-1]}"
    before = shown if more > 0 else shown[:-1]
    return f"persons {', '.join(map(str, before))} and {last}"
