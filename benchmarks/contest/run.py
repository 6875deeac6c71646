"""The contest of contract.json: what each method certifies from the same labels, and whether it keeps its word.

    python benchmarks/contest/run.py [--only TEXT] [--cache runs/contest] [--draws N --peer-draws N] [--part K/N]
    python benchmarks/contest/run.py --write

The first form measures (the rows whose population holds TEXT; every N-th of them from the K-th) and keeps one file for
each row under results/; --write makes contest.md from all rows that are kept. Needs the extra `contest` (mapie,
zugzwang); ../shared/data beside the checkout for the real scores. With another number of draws than the contract's
nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from contest.methods import METHODS, measured
from contest.shapes import known
from stage1 import Scores
from stage1.risk import binomial_lower, binomial_upper

HERE = Path(__file__).parent
CONTRACT = json.loads((HERE / "contract.json").read_text(encoding="utf-8"))
RESULTS = HERE / "results"


def drawn(population: Scores, size: int, rng: np.random.Generator) -> Scores:
    return population.take(rng.integers(0, len(population), size))


def row(case: Mapping[str, Any], labels: int, population: Scores, draws: int, peer_draws: int) -> dict[str, Any]:
    """Every method of the contract on the same draws: coverage, risk and seconds of each."""
    asks, target = case["asks"], case["target"]
    n_select = round(labels * CONTRACT["select_share"])
    rng = np.random.default_rng([CONTRACT["seed"], labels, *case["population"].encode(), len(asks)])
    # Two of the peer's calibrators are for two classes.
    binary = () if population.n_classes == 2 else ("zugzwang platt", "zugzwang isotonic")
    found: dict[str, list[tuple[float, float, float]]] = {
        name: [] for name in CONTRACT["methods"][asks] if name not in binary
    }
    for draw in range(draws):
        select, calib = drawn(population, n_select, rng), drawn(population, labels - n_select, rng)
        for name, rows in found.items():
            if name.startswith("mapie") and draw >= peer_draws:
                continue
            began = time.process_time()
            rule = METHODS[asks, name](select, calib, target, CONTRACT["confidence"])
            seconds = time.process_time() - began
            rows.append((*measured(rule, asks, population), seconds))
    return {
        **case,
        "labels": labels,
        "draws": draws,
        "peer_draws": peer_draws,
        "methods": {name: [[round(value, 6) for value in one] for one in rows] for name, rows in found.items()},
    }


def slug(case: Mapping[str, Any], labels: int) -> str:
    words = f"{case['population']} {case['asks']} {case['target']} {labels}".lower()
    return "-".join("".join(letter if letter.isalnum() else " " for letter in words).split())


def cases(only: str | None) -> Iterator[tuple[dict[str, Any], int]]:
    for case in CONTRACT["cases"]:
        if only is None or only in case["population"]:
            for labels in case["labels"]:
                yield {key: value for key, value in case.items() if key != "labels"}, labels


def measure(options: argparse.Namespace) -> None:
    makers = known(options.cache, CONTRACT["hidden_seed"])
    kept = (options.draws, options.peer_draws) == (CONTRACT["draws"], CONTRACT["peer_draws"])
    part, parts = (int(number) for number in options.part.split("/"))
    populations: dict[str, Scores] = {}
    for number, (case, labels) in enumerate(cases(options.only)):
        if number % parts != part - 1:
            continue
        if case["population"] not in makers:
            print(f"{case['population']}: left out, its data are not beside this checkout")
            continue
        path = RESULTS / f"{slug(case, labels)}.json"
        if kept and path.is_file():
            continue  # delete the file to measure the row again
        if case["population"] not in populations:
            populations = {case["population"]: makers[case["population"]]()}
        result = row(case, labels, populations[case["population"]], options.draws, options.peer_draws)
        if kept:
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
        line = ", ".join(f"{name} {np.mean([one[0] for one in rows]):.3f}" for name, rows in result["methods"].items())
        print(f"{case['population']}, {case['asks']} <= {case['target']:g}, {labels}: {line}", flush=True)


# ---- the page ----------------------------------------------------------------------------------------------------


def summary(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """method -> coverage, se, broken, draws, low, high (of the violation), seconds, gain and gain_se against ours."""
    own = np.array(result["methods"]["ours"])[:, 0]
    found = {}
    for name, rows in result["methods"].items():
        table = np.array(rows)
        broken, draws = int((table[:, 1] > result["target"]).sum()), len(table)
        gain = table[:, 0] - own[:draws]
        found[name] = {
            "coverage": float(table[:, 0].mean()),
            "se": float(table[:, 0].std(ddof=1) / np.sqrt(draws)),
            "broken": broken,
            "draws": draws,
            "low": float(binomial_lower(broken, draws, 0.025)),
            "high": float(binomial_upper(broken, draws, 0.025)),
            "seconds": float(np.median(table[:, 2])),
            "gain": float(gain.mean()),
            "gain_se": float(gain.std(ddof=1) / np.sqrt(draws)),
        }
    return found


def ahead(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Rivals ahead of ours by the contract's rule; the plug-in has no guarantee and is no rival."""
    allowed = 1 - CONTRACT["confidence"]
    return [
        name
        for name, one in found.items()
        if name not in ("ours", "plug-in") and one["gain"] > 2 * one["gain_se"] and one["low"] <= allowed
    ]


def best(found: Mapping[str, Mapping[str, float]], family: str) -> tuple[str, Mapping[str, float]]:
    name = max((name for name in found if name.startswith(family)), key=lambda name: found[name]["coverage"])
    return name, found[name]


def title(result: Mapping[str, Any]) -> str:
    asked = "fnr and fpr" if result["asks"] == "ratios" else "error"
    return f"{result['population']}, {asked} <= {result['target']:g}, {result['labels']:,} labels"


def cell(one: Mapping[str, float], allowed: float) -> str:
    words = f"{one['coverage']:.3f} ± {one['se']:.3f}"
    return words + (f" **broken {one['broken']}/{one['draws']}**" if one["low"] > allowed else "")


def page() -> str:
    allowed = 1 - CONTRACT["confidence"]
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for case, labels in cases(None)
        if (path := RESULTS / f"{slug(case, labels)}.json").is_file()
    ]
    summaries = [(result, summary(result)) for result in results]
    lost = []
    for result, found in summaries:
        if names := ahead(found):
            gains = ", ".join(f"{name} {found[name]['gain']:+.3f}" for name in names)
            lost.append(f"{title(result)}: {gains}")
    missing = [
        f"{case['population']} ({labels:,})"
        for case, labels in cases(None)
        if not (RESULTS / f"{slug(case, labels)}.json").is_file()
    ]
    lines = ["# Contest", ""]
    if lost:
        lines.append(f"A rival is ahead of ours in {len(lost)} of {len(results)} rows. " + ". ".join(lost) + ".")
    else:
        lines.append(f"No rival is ahead of ours in any of {len(results)} rows.")
    lines += [
        "",
        f"By [contract.json](contest/contract.json), written down before the run: {CONTRACT['draws']} draws a row"
        f" ({CONTRACT['peer_draws']} for MAPIE), confidence {CONTRACT['confidence']:.0%}. Coverage: mean true share"
        f" answered ± standard error. {CONTRACT['counted']['ahead']}",
    ]
    if missing:
        lines += ["", "Not run: " + ", ".join(missing) + "."]
    families = {
        "ratios": ("ours", "mapie", "symmetric", "holm", "plug-in"),
        "error": ("ours", "zugzwang", "mapie", "symmetric", "holm", "plug-in"),
    }
    for asks, heading in (("ratios", "fnr and fpr"), ("error", "Error among answers")):
        lines += ["", f"## {heading}", ""]
        lines += ["| row | " + " | ".join(families[asks]) + " |", "|---" * (1 + len(families[asks])) + "|"]
        for result, found in summaries:
            if result["asks"] == asks:
                chosen = [best(found, family) for family in families[asks]]
                cells = [
                    cell(one, allowed) + ("" if name == family else f" ({name.removeprefix(family).strip()})")
                    for family, (name, one) in zip(families[asks], chosen, strict=True)
                ]
                lines.append(f"| {title(result)} | " + " | ".join(cells) + " |")
    lines += ["", "Of a rival's variants the best in each row, chosen on the result. The plug-in promises nothing.", ""]
    lines += ["## Violations and time", "", "| method | rows | violations / draws | 95 % | median seconds |"]
    lines.append("|---|---|---|---|---|")
    for name in dict.fromkeys(name for _, found in summaries for name in found):
        own = [found[name] for _, found in summaries if name in found]
        broken, draws = sum(int(one["broken"]) for one in own), sum(int(one["draws"]) for one in own)
        low, high = float(binomial_lower(broken, draws, 0.025)), float(binomial_upper(broken, draws, 0.025))
        seconds = np.median([one["seconds"] for one in own])
        lines.append(f"| {name} | {len(own)} | {broken} / {draws} | {low:.3f} to {high:.3f} | {seconds:.3f} |")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("stage1-pro", "mapie", "zugzwang"))
    lines += ["", f"{platform.machine()}, Python {platform.python_version()}, {versions}. Command:"]
    lines += ["`python benchmarks/contest/run.py`, then `--write`.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the rows whose population holds this text")
    parser.add_argument("--cache", type=Path, default=Path("runs/contest"), help="runs on the photos, made once")
    parser.add_argument("--draws", type=int, default=CONTRACT["draws"])
    parser.add_argument("--peer-draws", type=int, default=CONTRACT["peer_draws"])
    parser.add_argument("--part", default="1/1", help="K/N: every N-th row from the K-th, for N processes")
    parser.add_argument("--write", action="store_true", help="make contest.md from the rows that are kept")
    options = parser.parse_args()
    if not options.write:
        measure(options)
        return
    (HERE.parent / "contest.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
