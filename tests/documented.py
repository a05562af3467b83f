"""The code that stands in the documentation, made small where that is all a test needs."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
YOUR_OWN = ROOT / "docs" / "your_own.md"


def python_in(page: Path) -> list[str]:
    """Its Python, snippet by snippet."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def snippet(page: Path, holding: str) -> str:
    """The one snippet of the page with this text in it."""
    (found,) = [code for code in python_in(page) if holding in code]
    return found


def language_example(model: Path) -> str:
    """The README's fine-tuning, with a model at hand and a few updates of short answers."""
    return _smaller(
        snippet(README, "rlhf.GRPO()"),
        {
            '"HuggingFaceTB/SmolLM2-135M-Instruct"': repr(str(model)),
            "tokens=64": "tokens=6",
            "updates=100": "updates=2",
        },
    )


def control_example() -> str:
    """The README's CartPole, for four updates."""
    return _smaller(snippet(README, "rlhf.Envs("), {"steps=100_000": "steps=2_048", "epochs=20": "epochs=2"})


def write_prompts(folder: Path, *, num_rows: int = 96) -> None:
    """prompts.jsonl, in the words of tests/lm/words.py."""
    words = "abcdefg"
    rows = [{"prompt": f"{words[i % 7]} {words[i // 7 % 7]}"} for i in range(num_rows)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _smaller(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert code.count(old) == 1, f"{old} is not in the snippet any more"
        code = code.replace(old, new)
    return code
