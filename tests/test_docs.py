"""The code in the documentation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ALGORITHMS = Path(__file__).parent.parent / "docs" / "algorithms.md"


def test_code_of_the_page_of_algorithms_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", ALGORITHMS.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    report, rollout = names["report"], names["rollout"]
    assert {"surrogate", "kl_old_new", "kl_new_old", "bound_estimate"} <= set(report)
    assert report["kl_old_new"] > 0.0
    # CartPole itself begins within 0.05.
    assert float(rollout.inputs["observations"][:, 0].abs().max()) > 0.05
