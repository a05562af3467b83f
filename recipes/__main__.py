"""The console command: `rlhf RECIPE ...` is `python recipes/RECIPE.py ...`, outside a checkout as well."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# The first is the one that most want.
RECIPES = sorted(
    (path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")),
    key=lambda name: (name != "custom_reward", name),
)


def main() -> None:
    """Runs the recipe named first with the options after it; without a name it lists them."""
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in ("--help", "-h"):
        print(usage())
        return
    name = given.replace("-", "_")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"error: there is no recipe {given}.{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [str(FOLDER / f"{name}.py")]
    runpy.run_module(f"recipes.{name}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """Every recipe with the first line of what it says of itself."""
    lines, width = ["rlhf RECIPE ..., with --help for its options:", ""], max(map(len, RECIPES))
    for name in RECIPES:
        text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<{width}} {text.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
