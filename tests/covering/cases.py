"""Few cases in which every combination of so many values occurs: a covering array, made greedily."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]
# Two values of two factors, as (factor, value): whether they may stand in one case.
Fits = Callable[[tuple[str, Any], tuple[str, Any]], bool]


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
    missing: Mapping[frozenset[tuple[str, Any]], None],
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


def _all_fit(values: Sequence[tuple[str, Any]], fits: Fits) -> bool:
    return all(fits(one, other) for one, other in combinations(values, 2))
