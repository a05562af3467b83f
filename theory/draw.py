"""The theory as pictures: one figure a claim, computed by the package's own code, and a page to read them on.

    python -m theory                        # all figures, about 40 minutes on one core
    python -m theory --figures 1 4          # some of them
    python -m theory --effort 0.1           # a first look: a tenth of the samples, updates and grid points

From the root of the repository. Each figure is one file of theory/figures: `compute` measures, `plot` draws.
OUTPUT_DIR/NN.npz keeps what was measured, so that drawing again computes nothing unless seeds, effort or code that the
figure reaches by its imports have changed; NN.png is the picture; report.html, readable offline, holds every figure
drawn there so far, with what one sees and the code.
"""

from __future__ import annotations

import base64
import html
import importlib
import inspect
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf.errors import InputError
from rlhf.runs.door import make_folder
from rlhf.runs.report import PAGE
from theory import figures
from theory.sources import sources_hash

FOLDER = Path(next(iter(figures.__path__)))
# In the archive of a figure's data: from what it was computed, and in how many seconds.
KEY, SECONDS = "_key", "_seconds"
INTRODUCTION = """<p>Each figure is a claim of the lectures, measured: what one sees, the picture, and the whole file
that made it; what figures share stands at the end. The methods in them are those of the package, whose code trains the
language models.</p>"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The figures of the theory."""

    figures: tuple[int, ...] = ()
    """Numbers of the figures to draw; none given draws all."""
    seeds: int = 10
    """Of whatever is sampled; bands are over them."""
    effort: float = 1.0
    """Share of the full work: samples, updates and grid points are scaled by it. The texts speak of 1."""
    output_dir: Path = Path("runs/theory")
    """Folder for pictures, data and report."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise InputError(f"seeds is {self.seeds}; a band needs at least 2.")
        if not self.effort > 0:
            raise InputError(f"effort is {self.effort}; it must be positive, 1 for the figures as shown.")


def main(config: Config) -> dict[str, float]:
    # Tables this small run faster without threads, which also do not disturb neighbours.
    torch.set_num_threads(1)
    known = find_figures()
    missing = sorted(set(config.figures) - known.keys())
    if missing:
        raise InputError(f"there is no figure {missing}; there are {list(known)}.")
    if (config.output_dir / "config.json").exists():
        raise InputError(f"{config.output_dir} holds a run, whose report the figures' would replace; name another.")
    make_folder(config.output_dir)
    for number in sorted(set(config.figures)) or known:
        module = figure(known[number])
        data, seconds = computed(module, config)
        (config.output_dir / f"{number:02d}.png").write_bytes(png(module.plot(data)))
        print(f"figure {number:2d}  {seconds:6.1f} s  {module.TITLE}", flush=True)
    parts = ("png", "npz")
    drawn = [n for n in known if all((config.output_dir / f"{n:02d}.{part}").exists() for part in parts)]
    write_report(config.output_dir, [figure(known[number]) for number in drawn])
    result = {f"seconds/{number:02d}": float(load(config.output_dir, number)[SECONDS]) for number in drawn}
    result["seconds"] = sum(result.values())
    (config.output_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"all of them: {config.output_dir / 'report.html'}", flush=True)
    return result


def find_figures() -> dict[int, str]:
    """Names of the modules by the number of their figure."""
    return {int(path.stem[3:5]): path.stem for path in sorted(FOLDER.glob("fig[0-9][0-9]_*.py"))}


def figure(name: str) -> ModuleType:
    return importlib.import_module(f"{figures.__name__}.{name}")


def computed(module: ModuleType, config: Config) -> tuple[dict[str, np.ndarray], float]:
    """A figure's data, from the folder if it is there, and the seconds that computing it took."""
    key = f"seeds {config.seeds}, effort {config.effort:g}, code {sources_hash(module.__name__)}"
    path = config.output_dir / f"{module.NUMBER:02d}.npz"
    if path.exists():
        data = load(config.output_dir, module.NUMBER)
        if data.pop(KEY) == key:
            return data, float(data.pop(SECONDS))
    start = time.perf_counter()
    data = module.compute(seeds=config.seeds, effort=config.effort)
    seconds = time.perf_counter() - start
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **data, **{KEY: np.array(key), SECONDS: np.array(seconds)})  # type: ignore[arg-type]
    part.replace(path)
    return data, seconds


def load(folder: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"{number:02d}.npz") as archive:
        return dict(archive)


def shared_modules() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith(("fig", "__")))


def png(picture: Figure) -> bytes:
    FigureCanvasAgg(picture)
    image = io.BytesIO()
    # Without the name of the software, which holds a version, the bytes depend on the numbers only.
    picture.savefig(image, format="png", dpi=100, metadata={"Software": None})
    return image.getvalue()


def write_report(folder: Path, modules: list[ModuleType]) -> None:
    """A page that reads offline: pictures are in it, and nothing is fetched."""
    titles = [(f"figure-{module.NUMBER:02d}", module.NUMBER, html.escape(module.TITLE)) for module in modules]
    contents = "".join(f'<li value="{number}"><a href="#{name}">{title}</a></li>' for name, number, title in titles)
    parts = ["<h1>The theory, measured</h1>", INTRODUCTION, f"<ol>{contents}</ol>"]
    for module in modules:
        number = f"{module.NUMBER:02d}"
        how, _, _ = str(load(folder, module.NUMBER)[KEY]).partition(", code")
        image = base64.b64encode((folder / f"{number}.png").read_bytes()).decode("ascii")
        parts += [
            f'<h2 id="figure-{number}">{module.NUMBER}. {html.escape(module.TITLE)}</h2>',
            f"<p>{html.escape(inspect.getdoc(module) or '')}</p>",
            f'<img alt="figure {number}" src="data:image/png;base64,{image}">',
            f"<p><b>What one sees</b> with 10 seeds and effort 1. {html.escape(module.SEES)}</p>",
            f"<p>This picture: {html.escape(how)}.</p>",
            _code(Path(inspect.getfile(module)).name, inspect.getsource(module)),
        ]
    parts.append("<h2>What the figures share</h2>")
    parts += [_code(path.name, path.read_text("utf-8")) for path in shared_modules()]
    page = PAGE.format(title="The theory, measured", body="\n".join(parts))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _code(name: str, source: str) -> str:
    return (
        f"<details><summary>The code: {html.escape(name)}</summary>"
        f'<pre style="overflow: auto">{html.escape(source)}</pre></details>'
    )
