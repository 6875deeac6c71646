"""The tables of benchmarks/views.py as Markdown, and the cost curve."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stage1.report.figures.drawing import style
from stage1.report.figures.views import view_costs
from stage1.runtime.session import cores
from stage1.storage.files import write_text
from view_bench.measures import Measured, Row, SplitRow

HERE = Path(__file__).parents[1]
_COLUMNS = (
    "head / pool",
    "AUGRC val_select, e-3",
    "AUGRC val_test, e-3",
    "difference",
    "ECE before",
    "ECE after",
    "coverage",
    "difference",
    "fnr, false exits",
    "redraws: coverage",
    "difference (2.5 % to 97.5 %)",
    "views",
    "ms",
)


def table(name: str, found: Measured, counts: Mapping[str, tuple[int, int]]) -> str:
    target = " and ".join(f"{risk} <= {level:g}" for risk, level in found.risks.items())
    unit = (
        "images counted as independent, which frames of one segment are not (nominal)"
        if found.assume_iid
        else "groups respected"
    )
    sizes = ", ".join(f"{role} {images} images in {groups} groups" for role, (images, groups) in counts.items())
    lines = [
        f"## {name}",
        "",
        _command(),
        "",
        f"{sizes}. Target {target} at 95 %, {unit}. Differences are to the first row; brackets are 95 % intervals.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
        *(_line(found, place) for place in range(len(found.rows))),
        "",
        *_sentences(found),
        "",
    ]
    return "\n".join(lines)


def _command() -> str:
    words = " ".join(["python", "benchmarks/views.py", *_public(sys.argv[1:])])
    return (
        f"`{words}`; {platform.machine()}, {cores()} cores, Python {platform.python_version()},"
        f" {datetime.now(UTC):%Y-%m-%d}."
    )


def _public(arguments: Sequence[str]) -> list[str]:
    """Paths of the machine say nothing to a reader: their last part does."""
    return [Path(word).name if "/" in word else word for word in arguments]


def _line(found: Measured, place: int) -> str:
    row = found.rows[place]
    metrics = found.test["arms"][place]["metrics"]
    on_select = {arm["name"]: arm["metrics"]["augrc"]["value"] for arm in found.select["arms"]}
    redrawn = found.redrawn[:, place]
    label = f"{row.name}, tolerance {row.tolerance:g}" if row.is_adaptive else row.name
    cells = [
        f"**{label}**" if place == found.chosen else label,
        "-" if row.is_adaptive else f"{1000 * on_select[row.key]:.2f}",
        _interval(metrics["augrc"], 1000, 2),
        _difference(found.test, row.key, "augrc", 1000, 2),
        *(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in found.ece[place]),
        _interval(metrics["coverage"], 1, 3) if found.certified[place] else "nothing certified",
        _difference(found.test, row.key, "coverage", 1, 3),
        "{:.3f}, {:.3f}".format(*found.rates[place]),
        f"{redrawn.mean():.3f}" if len(redrawn) else "-",
        _redrawn(found.redrawn[:, place] - found.redrawn[:, 0]) if place and len(redrawn) else "-",
        f"{row.views:.2f}" if row.is_adaptive else f"{row.views:.0f}",
        "-" if found.times is None else f"{milliseconds(found, row):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def milliseconds(found: Measured, row: Row) -> float:
    assert found.times is not None
    if row.frozen is not None and row.frozen.sequence is not None:
        return found.times.measure_adaptive(row.frozen.sequence, row.head)
    return found.times.single if row.pool == "whole" else found.times.ten


def _interval(value: Mapping[str, Any], scale: float, digits: int) -> str:
    text = f"{scale * value['value']:.{digits}f}"
    return (
        text
        if value["low"] is None
        else f"{text} [{scale * value['low']:.{digits}f}, {scale * value['high']:.{digits}f}]"
    )


def _difference(comparison: Mapping[str, Any], arm: str, metric: str, scale: float, digits: int) -> str:
    row = next((one for one in comparison["differences"] if one["arm"] == arm and one["metric"] == metric), None)
    if row is None or row["difference"] is None or row["low"] is None:
        return "-"
    return (
        f"{scale * row['difference']:+.{digits}f} [{scale * row['low']:+.{digits}f}, {scale * row['high']:+.{digits}f}]"
    )


def _redrawn(gap: np.ndarray) -> str:
    low, high = np.quantile(gap, [0.025, 0.975])
    return f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _sentences(found: Measured) -> list[str]:
    chosen, reference = found.rows[found.chosen], found.rows[0]
    said = [f"Least AUGRC on val_select: {chosen.name}, ridge {chosen.ridge:g} (bold)."]
    if found.chosen:
        said.append(
            f"On val_select its AUGRC differs from {reference.name} by"
            f" {_difference(found.select, chosen.key, 'augrc', 1000, 2)} e-3."
        )
        gain = next(
            one for one in found.test["differences"] if one["arm"] == chosen.key and one["metric"] == "coverage"
        )
        word = "excludes" if gain["low"] is not None and gain["low"] > 0 else "does not exclude"
        said.append(
            f"Its certified coverage on val_test is {_difference(found.test, chosen.key, 'coverage', 1, 3)} against the"
            f" single view: the interval {word} zero above."
        )
    lines = [" ".join(said)]
    for place, row in enumerate(found.rows):
        if row.frozen is None or row.frozen.sequence is None:
            continue
        redrawn = found.redrawn[:, place] - found.redrawn[:, found.chosen]
        lines.append(
            f"Adaptive, tolerance {row.tolerance:g}: {row.views:.2f} of {len(row.frozen.sequence.order)} views; against"
            f" all of them {_difference(found.against_chosen, row.key, 'coverage', 1, 3)} coverage"
            + (f", over redraws {_redrawn(redrawn)}." if len(redrawn) else ".")
        )
    if found.times is not None:
        t = found.times
        lines.append(
            f"Ten views of a {t.pixels[0]} x {t.pixels[1]} px image from one decode {t.ten:.1f} ms, from ten decodes"
            f" {t.separate:.1f} ms (ratio {t.separate / t.ten:.2f}); decoding and cutting alone"
            f" {t.ten_without_model:.1f} and {t.separate_without_model:.1f} ms (ratio"
            f" {t.separate_without_model / t.ten_without_model:.2f}); one decode {t.decode:.1f} ms. CPU time of one"
            " core."
        )
    return lines


def iid_table(name: str, lines: Sequence[SplitRow], risks: Mapping[str, float], splits: int, training: float) -> str:
    target = " and ".join(f"{risk} <= {level:g}" for risk, level in risks.items())
    columns = (
        "head / pool",
        "coverage (se)",
        "difference (se)",
        "AUGRC, e-3 (se)",
        "ECE before, after",
        "fnr, false exits",
        "views",
        "chosen in",
    )
    rows = [
        "| "
        + " | ".join(
            [
                line.name,
                f"{line.coverage[0]:.3f} ({line.coverage[1]:.3f})",
                f"{line.gain[0]:+.3f} ({line.gain[1]:.3f})" if index else "-",
                f"{1000 * line.augrc[0]:.1f} ({1000 * line.augrc[1]:.1f})",
                f"{line.ece[0]:.3f}, {line.ece[1]:.3f}",
                f"{line.rates[0]:.3f}, {line.rates[1]:.3f}",
                f"{line.views:.2f}",
                str(line.chosen) if line.chosen else "-",
            ]
        )
        + " |"
        for index, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f"## {name}",
            "",
            _command(),
            "",
            (
                f"Means over {splits} random deals of the images"
                f" ({100 * training:.0f}/10/33/{100 * (1 - training - 0.1 - 1 / 3):.0f}), standard errors over deals."
                f" Target {target} at 95 %, images counted as independent, which these are by the deal."
            ),
            "",
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
            *rows,
            "",
        ]
    )


def paired_lines(gains: Mapping[str, tuple[float, float]]) -> list[str]:
    """Of the head on pooled features against what else there is, on the same deals."""
    shown = ("whole / whole", "whole, mlp / whole", "mil / mean", "probe / mean of tiles", "probe / whole, max, mean")
    words = ", ".join(f"{name} {gains[name][0]:+.3f} (se {gains[name][1]:.3f})" for name in shown)
    return [f"Certified coverage of `pooled, mlp` on the same deals against: {words}."]


def draw(found: Measured, path: Path) -> None:
    """The cost curve: the single view, the chosen pool of all views, and the adaptive rows."""
    rows = []
    for place, row in enumerate(found.rows):
        if place not in (0, found.chosen) and not row.is_adaptive:
            continue
        value = found.test["arms"][place]["metrics"]["coverage"]
        rows.append(
            {
                "name": "one view" if place == 0 else "all views",
                "kind": "adaptive" if row.is_adaptive else "fixed",
                "views": row.views,
                "milliseconds": None if found.times is None else milliseconds(found, row),
                "coverage": value["value"],
                "low": value["low"],
                "high": value["high"],
            }
        )
    with style():
        path.write_bytes(view_costs(rows).png)


def write(name: str, text: str) -> None:
    """Into views.md, in place of the section of this name."""
    path = HERE / "views.md"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Views\n\n"
    parts = old.split("\n## ")
    heading = text.removeprefix("## ").splitlines()[0]
    kept = [part for part in parts if part.splitlines()[:1] != [heading]]
    notes = [part for part in kept[1:] if part.startswith("What was looked at")]
    sections = [part for part in kept[1:] if part not in notes]
    write_text(path, "\n## ".join([kept[0], *sections, text.removeprefix("## ").rstrip("\n") + "\n", *notes]))
