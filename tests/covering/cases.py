"""Few cases in which every combination of so many values occurs: a covering array, made greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

Case = dict[str, Any]
# A value of a factor.
Value = tuple[str, Any]
# Whether two values may stand in one case.
Fits = Callable[[Value, Value], bool]


class Refusal(NamedTuple):
    """Two values that do not go together, and what the message says."""

    one: Value
    other: Value
    message: str

    def named(self) -> str:
        return f"{self.one[1]}, {' '.join(self.other)}"


def refused(one: str, values: Sequence[str], other: str, others: Sequence[str], message: str) -> list[Refusal]:
    """Each of the values of one factor with each of another's."""
    return [Refusal((one, value), (other, against), message) for value in values for against in others]


class Mechanisms:
    """Factors and their values, of which the first is the plain one, and which values do not meet.

    Args:
        absent: Pairs that there is no run of, though nobody refuses them.
    """

    def __init__(
        self, factors: Mapping[str, Sequence[Any]], refusals: Sequence[Refusal], absent: Sequence[tuple[Value, Value]]
    ) -> None:
        self.factors, self.refusals = factors, refusals
        self.absent = {frozenset(pair) for pair in absent}
        self._refused = {frozenset((refusal.one, refusal.other)) for refusal in refusals}

    def fits(self, one: Value, other: Value) -> bool:
        return frozenset((one, other)) not in self.absent | self._refused

    def array(self, strength: int) -> list[Case]:
        return covering_array(self.factors, strength=strength, fits=self.fits)

    def named(self, case: Case) -> str:
        """What of a case is not plain."""
        others = [f"{name} {value}" for name, value in case.items() if value != self.factors[name][0]]
        return ", ".join(others) or "plain"

    def refused_case(self, refusal: Refusal) -> Case:
        """One of which nothing is refused but these two values."""
        others = self._refused - {frozenset((refusal.one, refusal.other))}

        def fits(one: Value, other: Value) -> bool:
            return frozenset((one, other)) not in others

        case = completed(dict((refusal.one, refusal.other)), self.factors, fits=fits, missing={}, strength=2)
        assert case is not None, refusal
        return case

    def unmet(self, cases: Sequence[Case]) -> set[frozenset[Value]]:
        """Pairs of values that are in none of the cases, though neither refused nor absent."""
        values = [(name, value) for name in self.factors for value in self.factors[name]]
        pairs = {frozenset(pair) for pair in combinations(values, 2) if pair[0][0] != pair[1][0]}
        met = {frozenset(pair) for case in cases for pair in combinations(case.items(), 2)}
        assert not met & (self.absent | self._refused)
        return pairs - met - self.absent - self._refused


def covering_array(factors: Mapping[str, Sequence[Any]], *, strength: int, fits: Fits) -> list[Case]:
    """Cases with a value for each factor, in which every combination of `strength` values that fit occurs.

    Each case begins with the first combination that is still missing, and then takes, factor by factor, the value with
    which most of the missing ones occur. Combinations that no whole case can hold are left out.
    """
    missing = {
        frozenset(zip(names, values, strict=True)): None
        for names in combinations(factors, strength)
        for values in product(*(factors[name] for name in names))
        if _all_fit(list(zip(names, values, strict=True)), fits)
    }
    cases = []
    while missing:
        seed = next(iter(missing))
        del missing[seed]
        case = completed(dict(seed), factors, fits=fits, missing=missing, strength=strength)
        if case is None:
            continue
        for found in combinations(case.items(), strength):
            missing.pop(frozenset(found), None)
        cases.append({name: case[name] for name in factors})
    return cases


def completed(
    given: Case,
    factors: Mapping[str, Sequence[Any]],
    *,
    fits: Fits,
    missing: Mapping[frozenset[Value], None],
    strength: int,
) -> Case | None:
    """`given` with a value for every other factor, all of which fit; None if there are none such."""
    left = [name for name in factors if name not in given]
    if not left:
        return given
    name = left[0]
    allowed = [value for value in factors[name] if all(fits((name, value), other) for other in given.items())]

    def gained(value: Any) -> int:
        others = combinations(given.items(), strength - 1)
        return sum(frozenset((*some, (name, value))) in missing for some in others)

    for value in sorted(allowed, key=gained, reverse=True):
        whole = completed({**given, name: value}, factors, fits=fits, missing=missing, strength=strength)
        if whole is not None:
            return whole
    return None


def _all_fit(values: Sequence[Value], fits: Fits) -> bool:
    return all(fits(one, other) for one, other in combinations(values, 2))
