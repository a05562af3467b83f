"""A run as one offline page, from its files alone: headline, curves, samples before and after, configuration.

`python -m rlhf.runs.report --run-folder runs/x` writes it again.
"""

from __future__ import annotations

import base64
import html
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf.errors import InputError
from rlhf.runs.console import visible
from rlhf.runs.door import flatten
from rlhf.runs.log import read_lines

# Heading of a figure and how the names of its metrics start; the first that fits counts.
GROUPS = {
    "evaluation": ("eval_",),
    "return and score": ("return", "score", "reward"),
    "episodes": ("episode", "finished"),
    "KL": ("kl_", "approx_kl"),
    "entropy": ("entropy",),
    "losses": ("policy_loss", "value_loss", "loss", "negative_log_likelihood", "preference_loss"),
    "preferences": ("accuracy", "margin", "chosen_score", "rejected_score"),
    "clipping": ("clip_fraction", "value_clip_fraction", "ratio"),
    "critic": ("explained_variance", "td_error", "value", "advantage"),
    "optimizer": ("gradient_norm", "learning_rate"),
    "speed": ("steps_per_second", "seconds", "memory"),
    "others": ("",),
}
AXES = ("update", "steps")
LABELS = ("update", "kind")
SAMPLES_SHOWN = 12
COLUMNS = 3

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3em .8em; text-align: left; vertical-align: top; }}
td {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
img {{ max-width: 100%; }}
.name {{ color: #777; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(run_folder: Path) -> Path:
    """Writes `report.html`, and each phase's curves as `curves/*.png`; the same files give the same bytes.

    Raises:
        InputError: There is no run in the folder.
    """
    if not (run_folder / "config.json").exists():
        raise InputError(f"there is no run in {run_folder} to report on: config.json is missing.")
    result = run_folder / "result.json"
    parts = [f"<h1>{html.escape(run_folder.resolve().name)}</h1>"]
    if result.exists():
        parts += ["<h2>Result</h2>", _pairs(_read(result))]
    for folder in phase_folders(run_folder):
        parts += _phase(folder)
    parts += ["<h2>Configuration</h2>", _pairs(flatten(_read(run_folder / "config.json")))]
    parts += ["<h2>Versions</h2>", _pairs(_read(run_folder / "versions.json"))]
    page = run_folder / "report.html"
    page.write_text(PAGE.format(title=html.escape(run_folder.resolve().name), body="\n".join(parts)), encoding="utf-8")
    return page


def phase_folders(run_folder: Path) -> list[Path]:
    """Subfolders of phases, in the order in which the run had them."""
    marks = sorted(run_folder.glob("*/phase.json"), key=lambda mark: (_read(mark)["order"], mark.parent.name))
    return [mark.parent for mark in marks]


def _phase(folder: Path) -> list[str]:
    rows = read_lines(folder / "metrics.jsonl")
    parts = [f"<h2>{html.escape(folder.name)}</h2>"]
    if not rows:
        return [*parts, "<p>Nothing was logged.</p>"]
    parts += [f"<p>{rows[-1]['update']} updates, {rows[-1].get('steps', 0):,} steps.</p>"]
    (folder / "curves").mkdir(exist_ok=True)
    for group, names in _grouped(rows).items():
        image = _curves(rows, names)
        (folder / "curves" / f"{group.replace(' ', '-')}.png").write_bytes(image)
        encoded = base64.b64encode(image).decode("ascii")
        parts += [f"<h3>{group}</h3>", f'<img alt="{group}" src="data:image/png;base64,{encoded}">']
    parts += ["<h3>First and last</h3>", _first_and_last(rows)]
    return parts + _before_and_after(folder)


def _grouped(rows: Sequence[Mapping[str, float]]) -> dict[str, list[str]]:
    """Metric names by the figure they belong to, in the order of GROUPS; the ends of an interval are drawn with it."""
    names = dict.fromkeys(name for row in rows for name in row if name not in AXES)
    for name in list(names):
        if f"{name}_low" in names:
            del names[f"{name}_low"], names[f"{name}_high"]
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in names:
        groups[next(group for group, starts in GROUPS.items() if name.startswith(starts))].append(name)
    return {group: members for group, members in groups.items() if members}


def _curves(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> bytes:
    """One panel a metric, since no two share a scale, as a PNG."""
    axis = "steps" if all("steps" in row for row in rows) else "update"
    lines = -(-len(names) // COLUMNS)
    height = 2.6 * lines
    figure = Figure(figsize=(12, height), dpi=80)
    FigureCanvasAgg(figure)
    # By hand, for matplotlib's own layouts take as long as the drawing.
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.5 / height, top=1 - 0.3 / height, wspace=0.22, hspace=0.45)
    for index, name in enumerate(names):
        points = [(row[axis], row[name]) for row in rows if name in row]
        panel = figure.add_subplot(lines, COLUMNS, index + 1)
        panel.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else None, linewidth=1.2)
        band = [(row[axis], row[f"{name}_low"], row[f"{name}_high"]) for row in rows if f"{name}_low" in row]
        if band:
            x, low, high = zip(*band, strict=True)
            panel.fill_between(x, low, high, alpha=0.25, linewidth=0)
        panel.set_title(visible(name), fontsize=9, parse_math=False)
        panel.set_xlabel(axis, fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    image = io.BytesIO()
    # Without the name of the software, which holds a version, the bytes depend on the numbers only.
    with warnings.catch_warnings():
        # Letters that the font lacks are boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def _first_and_last(rows: Sequence[Mapping[str, float]]) -> str:
    lines = []
    for name in (name for names in _grouped(rows).values() for name in names):
        values = [row[name] for row in rows if name in row]
        lines.append(f"<tr><td>{html.escape(name)}</td><td>{values[0]:.5g}</td><td>{values[-1]:.5g}</td></tr>")
    return "<table><tr><th>metric</th><th>first</th><th>last</th></tr>" + "".join(lines) + "</table>"


def evaluated_pairs(folder: Path) -> tuple[int, int, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Updates of a phase's first and last evaluation, and their samples side by side, without what only labels them."""
    evaluated = [sample for sample in read_lines(folder / "samples.jsonl") if sample.get("kind") == "evaluation"]
    if not evaluated:
        return 0, 0, []
    first, last = evaluated[0]["update"], evaluated[-1]["update"]
    plain = [{name: value for name, value in sample.items() if name not in LABELS} for sample in evaluated]
    before = [sample for sample, whole in zip(plain, evaluated, strict=True) if whole["update"] == first]
    after = [sample for sample, whole in zip(plain, evaluated, strict=True) if whole["update"] == last]
    return first, last, list(zip(before, after, strict=False))


def _before_and_after(folder: Path) -> list[str]:
    """The first and the last evaluation, sample by sample; what both have in common is shown once."""
    first, last, pairs = evaluated_pairs(folder)
    if not pairs:
        return []
    lines = []
    for old, new in pairs[:: max(len(pairs) // SAMPLES_SHOWN, 1)]:
        common = {name for name in old if name in new and old[name] == new[name]}
        own = [_fields(record, record.keys() - common) for record in (old, new)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (_fields(old, common), *own)) + "</tr>")
    heading = f"<tr><th>sample</th><th>before (update {first})</th><th>after (update {last})</th></tr>"
    title = f"<h3>Samples before and after ({len(lines)} of {len(pairs)})</h3>"
    return [title, "<table>" + heading + "".join(lines) + "</table>"]


def _fields(sample: Mapping[str, Any], names: set[str]) -> str:
    """Some fields of a record, in the record's order."""
    shown = [(name, value) for name, value in sample.items() if name in names]
    return "\n".join(f'<span class="name">{html.escape(name)}:</span> {_text(value)}' for name, value in shown)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _pairs(values: Mapping[str, Any]) -> str:
    lines = (f"<tr><th>{html.escape(name)}</th><td>{_text(value)}</td></tr>" for name, value in values.items())
    return "<table>" + "".join(lines) + "</table>"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    import tyro

    print(tyro.cli(write_report))
