"""The plan of one mask update: pools, amounts, and which units are kept, as a pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.select import count_true, keep_highest, keep_highest_rows, keep_within
from secateur.sparsify.units import Units, removable
from secateur.structure.weights import PrunableWeight, matches
from secateur.technique import Technique


@dataclass(frozen=True)
class Entry:
    """One weight in a plan: its units, what each costs, its scores and what is removed now.

    ``scores`` and ``removed`` are [units]; ``growth`` scores removed units that may return;
    ``unit_cost`` is the cost of a complete unit, ``share`` the share of units to remove;
    ``ranked`` are the scores with what must go at -inf and what must stay at inf; ``gone`` counts
    what is removed now.
    """

    weight: PrunableWeight
    units: Units
    unit_cost: float
    scores: Tensor
    removed: Tensor
    share: float
    growth: Tensor | None = None
    ranked: Tensor = field(default_factory=lambda: torch.empty(0))
    gone: int = 0

    @property
    def cost(self) -> float:
        """What all units cost together."""
        if self.units.equal:
            return self.unit_cost * self.units.count
        return self.unit_cost * math.prod(self.units.shape) / self.units.largest

    def costs(self) -> Tensor:
        """Return what each unit costs [units]."""
        return self.units.sizes() * (self.unit_cost / self.units.largest)


@dataclass(frozen=True)
class Choice:
    """Which units are kept [units] for every entry, and the cost that could not be claimed."""

    kept: list[Tensor]
    unmet: float


def choose(
    technique: Technique, entries: Sequence[Entry], amount: float, time: float, exact_total: bool
) -> Choice:
    """Choose the units to keep.

    ``amount`` is what all pools together should claim, ``time`` the schedule's own time, and
    ``exact_total`` asks for the nearest total instead of the nearest count in every layer.
    """
    ready = [_restrict(technique, entry) for entry in entries]
    kept: list[Tensor] = [torch.empty(0)] * len(entries)
    unmet = 0.0
    pools = _pools(technique, entries)
    wanted = [sum(entries[place].share * entries[place].cost for place in pool) for pool in pools]
    if exact_total and technique.context.pool != "row":
        wanted = _nearest_total(entries, pools, wanted, amount)
    for pool, claim in zip(pools, wanted, strict=True):
        members = [ready[place] for place in pool]
        if technique.context.pool == "row":
            chosen, missed = _choose_rows(technique, members[0], time)
        else:
            chosen, missed = _choose_pool(technique, members, claim, time)
        unmet += missed
        for place, mask in zip(pool, chosen, strict=True):
            kept[place] = mask
    return Choice(kept, unmet)


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
            kinds.setdefault((entry.weight.kind, entry.units.largest), []).append(place)
        return list(kinds.values())
    grouped: list[list[int]] = []
    taken: set[int] = set()
    for name, patterns in context.groups:
        hits = [
            place
            for place, entry in enumerate(entries)
            if place not in taken and any(matches(entry.weight, p) for p in patterns)
        ]
        if not hits:
            raise SecateurError(f"the group '{name}' of {context} matches no prunable layer")
        taken.update(hits)
        grouped.append(hits)
    return grouped


def _restrict(technique: Technique, entry: Entry) -> Entry:
    """Give an infinite score to units that may not go (n:m, the least share kept)."""
    scores = entry.scores
    if technique.schedule.mask.kind == "permanent" and entry.gone:
        scores = scores.masked_fill(entry.removed, -torch.inf)
    if technique.granularity.block is not None:
        allowed = removable(scores, entry.weight, technique.granularity)
        scores = scores.masked_fill(~allowed, torch.inf)
    least = math.ceil(technique.context.keep * entry.units.count - 1e-9)
    if least:
        barred = keep_highest([scores], entry.units.count - least)[0]
        scores = scores.masked_fill(barred, torch.inf)
    return replace(entry, ranked=scores)


def _choose_pool(
    technique: Technique, members: Sequence[Entry], claim: float, time: float
) -> tuple[list[Tensor], float]:
    prices = {entry.unit_cost for entry in members}
    if len(prices) > 1 or not all(entry.units.equal for entry in members):
        return _choose_priced(technique, members, claim)
    price = prices.pop()
    total = sum(entry.units.count for entry in members)
    count = min(total, round(claim / price)) if price else 0
    gone = [entry.gone for entry in members]
    dynamics = technique.schedule.mask
    if dynamics.kind == "regrown" and any(gone):
        return _regrow(members, total - count, dynamics.share_at(time)), 0.0
    scores = _fall_back(technique, members, count < sum(gone))
    found = min(count, _able(technique, scores, total))
    return keep_highest(scores, found), (count - found) * price


def _able(technique: Technique, scores: Sequence[Tensor], total: int) -> int:
    """Count the units that may go: all, unless n:m or a least share bars some."""
    if technique.granularity.block is None and not technique.context.keep:
        return total
    return sum(count_true(part < torch.inf) for part in scores)


def _choose_priced(
    technique: Technique, members: Sequence[Entry], claim: float
) -> tuple[list[Tensor], float]:
    """Choose among units of unequal cost: the lowest go until their costs reach the claim."""
    costs = [entry.costs() for entry in members]
    spent = sum(
        float(cost[entry.removed.cpu()].sum()) for cost, entry in zip(costs, members, strict=True)
    )
    scores = _fall_back(technique, members, claim < spent)
    kept = keep_within(scores, costs, claim)
    found = sum(float(cost[~mask.cpu()].sum()) for cost, mask in zip(costs, kept, strict=True))
    coarsest = max((float(cost.max()) for cost in costs if len(cost)), default=0.0)
    missed = claim - found
    return kept, missed if missed > coarsest / 2 + 1e-6 * max(1.0, claim) else 0.0


def _fall_back(technique: Technique, members: Sequence[Entry], falling: bool) -> list[Tensor]:
    """Where a permanent mask has to give units back, only those that are removed compete."""
    if not (falling and technique.schedule.mask.kind == "permanent"):
        return [entry.ranked for entry in members]
    return [entry.scores.masked_fill(~entry.removed, torch.inf) for entry in members]


def _choose_rows(technique: Technique, entry: Entry, time: float) -> tuple[list[Tensor], float]:
    """Remove the same number of units from every output of one weight."""
    per_row = entry.units.per_output
    if not entry.units.equal:
        raise SecateurError(
            f"{entry.weight.name}: the tile does not divide a row, so rows cannot compete evenly"
        )
    scores = entry.ranked.reshape(-1, per_row)
    count = min(per_row, round(entry.share * per_row))
    removed = entry.removed.reshape(-1, per_row)
    dynamics = technique.schedule.mask
    if dynamics.kind == "regrown" and bool(removed.any()):
        rows = range(len(scores))
        growth = None if entry.growth is None else entry.growth.reshape(-1, per_row)
        kept = [
            _regrow_vector(
                scores[row], removed[row], None if growth is None else growth[row],
                per_row - count, dynamics.share_at(time),
            )
            for row in rows
        ]  # fmt: skip
        return [torch.cat(kept)], 0.0
    falling = technique.schedule.mask.kind == "permanent" and count < int(removed.sum(1).max())
    if falling:
        scores = entry.scores.reshape(-1, per_row).masked_fill(~removed, torch.inf)
    able = int((scores < torch.inf).sum(1).min())
    found = min(count, able)
    missed = (count - found) * len(scores) * entry.unit_cost
    return [keep_highest_rows(scores, found).reshape(-1)], missed


def _regrow(members: Sequence[Entry], keep: int, exchanged: float) -> list[Tensor]:
    growth = [entry.growth for entry in members]
    kept = _regrow_vector(
        torch.cat([entry.ranked for entry in members]),
        torch.cat([entry.removed for entry in members]),
        torch.cat([part for part in growth if part is not None]) if growth[0] is not None else None,
        keep,
        exchanged,
    )
    return list(kept.split([entry.units.count for entry in members]))


def _regrow_vector(
    scores: Tensor, removed: Tensor, growth: Tensor | None, keep: int, exchanged: float
) -> Tensor:
    """Keep the best of the alive units, then let others grow until ``keep`` units live.

    As many as ``exchanged`` times the smaller of the alive and the wanted number are exchanged.
    """
    alive = ~removed
    number = int(torch.count_nonzero(alive))
    staying = min(keep, number) - int(exchanged * min(keep, number))
    ranked = scores.masked_fill(removed, -torch.inf)
    kept = keep_highest([ranked], len(scores) - staying)[0]
    if growth is None:
        raise LookupError("regrowth was asked for without growth scores")
    candidates = growth.masked_fill(kept, torch.inf)
    return keep_highest([candidates], len(scores) - keep)[0]


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
