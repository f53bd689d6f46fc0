"""The plan of one mask update: pools, amounts, and which units are kept, as a pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.lazy import Scores, complete, keep_best
from secateur.sparsify.select import count_true, keep_highest_rows, keep_within
from secateur.sparsify.units import Units, removable
from secateur.structure.weights import PrunableWeight, matches
from secateur.technique import Technique


@dataclass(frozen=True)
class Entry:
    """One weight in a plan: its units, what each costs, its scores and what is removed now.

    ``scores``, which may be lazy, and ``removed`` are [units]; ``growth`` scores removed units
    that may return; ``unit_cost`` is the cost of a complete unit, ``share`` the share to remove;
    ``ranked`` are the scores with what must go at -inf and what must stay at inf; ``gone`` counts
    what is removed now, and ``removed`` need not be looked at where it is 0; ``coupled`` are the
    weights whose units these are too.
    """

    weight: PrunableWeight
    units: Units
    unit_cost: float
    scores: Scores
    removed: Tensor
    share: float
    growth: Tensor | None = None
    ranked: Scores = field(default_factory=lambda: torch.empty(0))
    gone: int = 0
    coupled: tuple[PrunableWeight, ...] = ()

    def named(self, pattern: str) -> bool:
        """Whether a glob pattern names the weight, or one that is coupled with it."""
        return any(matches(weight, pattern) for weight in self.coupled or (self.weight,))

    @property
    def cost(self) -> float:
        """What all units cost together."""
        if self.units.equal:
            return self.unit_cost * self.units.count
        return self.unit_cost * math.prod(self.units.shape) / self.units.largest

    def costs(self) -> Tensor:
        """Return what each unit costs [units]."""
        return self.units.sizes() * (self.unit_cost / self.units.largest)

    def spent(self) -> float:
        """Return what the removed units cost together."""
        if self.units.equal:
            return self.gone * self.unit_cost
        return float(self.costs()[self.removed.cpu()].sum())


@dataclass(frozen=True)
class Choice:
    """Which units are kept [units] for every entry, and the cost that could not be claimed."""

    kept: list[Tensor]
    unmet: float


@dataclass(frozen=True)
class Rules:
    """How an update chooses, beside the scores: mask dynamics at a moment of the schedule.

    ``exchanged`` is the share of survivors that regrowth exchanges; a ``rising`` permanent mask
    gives nothing back.
    """

    technique: Technique
    exchanged: float
    rising: bool

    @property
    def kind(self) -> str:
        """The mask dynamics: permanent, reselected or regrown."""
        return self.technique.schedule.mask.kind

    @property
    def permanent(self) -> bool:
        """Whether what is removed stays removed while the share rises."""
        return self.kind == "permanent"

    @property
    def barred(self) -> bool:
        """Whether n:m or a least share keeps some units from going."""
        return self.technique.granularity.block is not None or self.technique.context.keep > 0


def choose(
    technique: Technique,
    entries: Sequence[Entry],
    amount: float,
    time: float,
    exact_total: bool,
    rising: bool = False,
) -> Choice:
    """Choose the units to keep.

    ``amount`` is what all pools together should claim, ``time`` the schedule's own time, and
    ``exact_total`` asks for the nearest total instead of the nearest count in every layer.
    ``rising`` says that the claim has not fallen since the last update.
    """
    rules = Rules(technique, technique.schedule.mask.share_at(time), rising)
    ready = [_restrict(rules, entry) for entry in entries]
    pools = _pools(technique, ready)
    wanted = [sum(ready[place].share * ready[place].cost for place in pool) for pool in pools]
    if rules.permanent and rising:
        spent = [sum(ready[place].spent() for place in pool) for pool in pools]
        wanted = [max(claim, gone) for claim, gone in zip(wanted, spent, strict=True)]
    if exact_total and technique.context.pool != "row":
        wanted = _nearest_total(ready, pools, wanted, amount)
    pooled = {place for pool in pools for place in pool}
    outside = [place for place in range(len(ready)) if place not in pooled]
    kept = {place: torch.ones_like(ready[place].removed) for place in outside}
    unmet = sum(ready[place].share * ready[place].cost for place in outside)
    for pool, claim in zip(pools, wanted, strict=True):
        members = [ready[place] for place in pool]
        if technique.context.pool == "row":
            chosen, missed = _choose_rows(rules, members[0])
        else:
            chosen, missed = _choose_pool(rules, members, claim)
        unmet += missed
        kept.update(zip(pool, chosen, strict=True))
    return Choice([kept[place] for place in range(len(ready))], unmet)


def _pools(technique: Technique, entries: Sequence[Entry]) -> list[list[int]]:
    """Divide the entries into pools; in the pool ``row`` each entry is split further later."""
    context = technique.context
    if context.pool in ("local", "row"):
        return [[place] for place in range(len(entries))]
    if context.pool == "global":
        return [list(range(len(entries)))]
    if context.pool == "isomorphic":
        kinds: dict[tuple[object, ...], list[int]] = {}
        for place, entry in enumerate(entries):
            kinds.setdefault((entry.weight.kind, entry.units.extent), []).append(place)
        return list(kinds.values())
    grouped: list[list[int]] = []
    taken: set[int] = set()
    for name, patterns in context.groups:
        hits = [
            place
            for place, entry in enumerate(entries)
            if place not in taken and any(entry.named(pattern) for pattern in patterns)
        ]
        if not hits:
            raise SecateurError(f"the group '{name}' of {context} matches no prunable layer")
        taken.update(hits)
        grouped.append(hits)
    return grouped


def _restrict(rules: Rules, entry: Entry) -> Entry:
    """Give an infinite score to units that may not go (n:m, the least share kept)."""
    scores = entry.scores
    if rules.kind != "reselected" and entry.gone:
        scores = complete(scores).masked_fill(entry.removed, -torch.inf)
    if rules.technique.granularity.block is not None:
        scores = complete(scores)
        allowed = removable(scores, entry.weight, rules.technique.granularity)
        scores = scores.masked_fill(~allowed, torch.inf)
    least = math.ceil(rules.technique.context.keep * entry.units.count - 1e-9)
    if least:
        barred = keep_best([scores], entry.units.count - least)[0]
        scores = complete(scores).masked_fill(barred, torch.inf)
    return replace(entry, ranked=scores)


def _choose_pool(
    rules: Rules, members: Sequence[Entry], claim: float
) -> tuple[list[Tensor], float]:
    """Choose within one pool: by count where all units cost the same, else by cost."""
    if rules.kind == "regrown" and any(entry.gone for entry in members):
        return _regrow(rules, members, claim)
    prices = {entry.unit_cost for entry in members}
    if len(prices) > 1 or not all(entry.units.equal for entry in members):
        return _choose_priced(rules, members, claim)
    price = prices.pop()
    total = sum(entry.units.count for entry in members)
    count = min(total, round(claim / price)) if price else 0
    scores = _competing(rules, members, count < sum(entry.gone for entry in members))
    able = total
    if rules.barred or any(entry.coupled for entry in members):
        able = sum(count_true(complete(part) < torch.inf) for part in scores)
    found = min(count, able)
    return keep_best(scores, found), (count - found) * price


def _choose_priced(
    rules: Rules, members: Sequence[Entry], claim: float
) -> tuple[list[Tensor], float]:
    """Choose among units of unequal cost: the lowest go until their costs reach the claim."""
    spent = sum(entry.spent() for entry in members)
    scores = _competing(rules, members, claim < spent - 1e-6 * max(1.0, spent))
    return _within(members, scores, claim)


def _within(
    members: Sequence[Entry], scores: Sequence[Scores], claim: float
) -> tuple[list[Tensor], float]:
    costs = [entry.costs() for entry in members]
    kept = keep_within([complete(part) for part in scores], costs, claim)
    found = sum(float(cost[~mask.cpu()].sum()) for cost, mask in zip(costs, kept, strict=True))
    coarsest = max((float(cost.max()) for cost in costs if len(cost)), default=0.0)
    missed = claim - found
    return kept, missed if missed > coarsest / 2 + 1e-6 * max(1.0, claim) else 0.0


def _competing(rules: Rules, members: Sequence[Entry], falling: bool) -> list[Scores]:
    """Where a permanent mask has to give units back, only those that are removed compete."""
    if not (falling and rules.permanent and not rules.rising):
        return [entry.ranked for entry in members]
    return [complete(entry.scores).masked_fill(~entry.removed, torch.inf) for entry in members]


def _regrow(rules: Rules, members: Sequence[Entry], claim: float) -> tuple[list[Tensor], float]:
    """Remove more than is claimed, then let the removed units of highest growth return.

    The lowest survivors give way until ``exchanged`` of what may stay has gone as well.
    """
    total = sum(entry.cost for entry in members)
    extra = rules.exchanged * max(0.0, total - claim)
    prices = {entry.unit_cost for entry in members}
    if len(prices) == 1 and prices != {0.0}:
        price = prices.pop()
        extra = math.floor(rules.exchanged * round((total - claim) / price) + 1e-9) * price
        claim = round(claim / price) * price
    if rules.technique.context.allocation == "momentum":  # the claim moves: a share of what is left
        left = total - sum(entry.spent() for entry in members)
        extra = max(0.0, total - claim - (1 - rules.exchanged) * left)
    survivors, _ = _within(members, [entry.ranked for entry in members], claim + extra)
    growth = [
        _growth(entry).masked_fill(kept, torch.inf)
        for entry, kept in zip(members, survivors, strict=True)
    ]
    return _within(members, growth, claim)


def _growth(entry: Entry) -> Tensor:
    if entry.growth is None:
        raise LookupError("regrowth was asked for without growth scores")
    return entry.growth


def _choose_rows(rules: Rules, entry: Entry) -> tuple[list[Tensor], float]:
    """Remove the same number of units from every output of one weight."""
    per_row = entry.units.per_output
    if not entry.units.equal:
        raise SecateurError(
            f"{entry.weight.name}: the tile does not divide a row, so rows cannot compete evenly"
        )
    scores = complete(entry.ranked).reshape(-1, per_row)
    removed = entry.removed.reshape(-1, per_row)
    count = min(per_row, round(entry.share * per_row))
    if rules.kind == "regrown" and entry.gone:
        extra = math.floor(rules.exchanged * (per_row - count) + 1e-9)
        able = int((scores < torch.inf).sum(1).min())
        survivors = keep_highest_rows(scores, min(per_row, count + extra, able))
        growth = _growth(entry).reshape(-1, per_row).masked_fill(survivors, torch.inf)
        found = min(count, able)
        missed = (count - found) * len(scores) * entry.unit_cost
        return [keep_highest_rows(growth, found).reshape(-1)], missed
    most = int(removed.sum(1).max()) if entry.gone else 0
    if count < most and rules.permanent:
        if rules.rising:
            count = most
        else:
            scores = complete(entry.scores).reshape(-1, per_row).masked_fill(~removed, torch.inf)
    found = min(count, int((scores < torch.inf).sum(1).min()) if rules.barred else per_row)
    missed = (count - found) * len(scores) * entry.unit_cost
    return [keep_highest_rows(scores, found).reshape(-1)], missed


def _nearest_total(
    entries: Sequence[Entry], pools: Sequence[Sequence[int]], wanted: list[float], amount: float
) -> list[float]:
    """Round every pool's claim to whole units so that the sum comes nearest to the amount."""
    claims = list(wanted)
    fractions: list[tuple[float, int, float]] = []
    for place, pool in enumerate(pools):
        prices = {entries[member].unit_cost for member in pool}
        if len(prices) != 1 or not all(entries[member].units.equal for member in pool):
            continue
        price = prices.pop()
        if price <= 0:
            continue
        whole = math.floor(claims[place] / price + 1e-9)
        fractions.append((claims[place] / price - whole, place, price))
        claims[place] = whole * price
    left = min(amount, sum(wanted)) - sum(claims)
    for _, place, price in sorted(fractions, key=lambda item: (-item[0], item[1])):
        limit = sum(entries[member].cost for member in pools[place])
        if left > price / 2 and claims[place] + price <= limit + 1e-9:
            claims[place] += price
            left -= price
    return claims
