"""Do the intervals cover? Every interval, verdict and "better" of the product against a known truth, as one table.

    python benchmarks/intervals.py [--only TOPIC] [--case TEXT] [--draws 400] [--seed 0] [--table]
    PYTHONPATH=CHECKOUT/src python benchmarks/intervals.py --old [--only TOPIC]

The first form measures this tree, keeps interval_bench/results/TOPIC.json and writes benchmarks/intervals.md from all
results that are kept; --table writes it without measuring. The second measures another checkout (the one before a
change) with the same populations and seeds, kept as TOPIC.old.json. --case measures the cases whose name holds TEXT and
prints them only. Exit status 1 where the new figures break the bars: coverage below .93 or a false verdict in more
than .06 of the draws, each by more than 3 standard errors.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from interval_bench.tally import simulate, standard_error

# Topic -> its heading in the table; the file is interval_bench/TOPIC.py.
TOPICS = {
    "evaluation": "`evaluate`: metrics, risks and coverage",
    "compare": "`compare`: two models on the same images",
    "label_shift": "`evaluate --target`: the balance of unlabelled scores",
    "reward": "`streetvision reward`: the reward, and the gain of a threshold",
    "cascade_plan": "`cascade plan`: the share of images that reaches a later stage",
}
RESULTS = Path(__file__).parent / "interval_bench" / "results"
PAGE = Path(__file__).parent / "intervals.md"
COVERS = 0.93
FALSE = 0.06


def measure(topic: str, draws: int, seed: int, only: str | None) -> dict[str, Any]:
    import stage1

    cases = importlib.import_module(f"interval_bench.{topic}").CASES
    return {
        "version": stage1.__version__,
        "draws": draws,
        "seed": seed,
        "python": platform.python_version(),
        "rows": simulate(cases, draws, seed, only),
    }


def kept(topic: str, old: bool) -> dict[tuple[str, str], dict[str, Any]]:
    path = RESULTS / f"{topic}.{'old.' if old else ''}json"
    if not path.is_file():
        return {}
    return {(row["row"], row["case"]): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def broken(row: Mapping[str, Any]) -> str | None:
    """Why a row breaks the bars, None where it keeps them."""
    intervals, claims = row["intervals"], row["claims"]
    if intervals and row["covered"] / intervals < COVERS - 3 * standard_error(COVERS, intervals):
        return f"covers {row['covered'] / intervals:.3f}"
    if claims and row["false_claims"] / claims > FALSE + 3 * standard_error(FALSE, claims):
        return f"false in {row['false_claims'] / claims:.3f}"
    return None


def rate(row: Mapping[str, Any] | None, part: str, of: str) -> str:
    if row is None:
        return ""
    if not row[of]:
        return "no interval" if not row["row"].startswith("p-value") and of == "intervals" else ""
    return f"{row[part] / row[of]:.3f}"


def without(row: Mapping[str, Any] | None) -> str:
    if row is None or row["intervals"] == row["draws"] or row["row"].startswith("p-value"):
        return ""
    return f"{1 - row['intervals'] / row['draws']:.2f}"


def table(topic: str) -> Iterator[str]:
    new, old = kept(topic, old=False), kept(topic, old=True)
    yield f"## {TOPICS[topic]}"
    yield ""
    yield (
        "| what is printed | population | draws | covers, before | now | no interval | false verdict, before | now"
        " | width, before | now |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for key, row in new.items():
        was = old.get(key)
        widths = ["" if one is None or one["width"] is None else f"{one['width']:.3g}" for one in (was, row)]
        yield (
            f"| {row['row']} | {row['case']} | {row['draws']} | {rate(was, 'covered', 'intervals')}"
            f" | {rate(row, 'covered', 'intervals')} | {without(row)} | {rate(was, 'false_claims', 'claims')}"
            f" | {rate(row, 'false_claims', 'claims')} | {widths[0]} | {widths[1]} |"
        )
    yield ""


def losses() -> Iterator[str]:
    """The rows on the wrong side of a bar, however little: named first."""
    for topic in TOPICS:
        for (name, case), row in kept(topic, old=False).items():
            covers = row["covered"] / row["intervals"] if row["intervals"] else 1.0
            false = row["false_claims"] / row["claims"] if row["claims"] else 0.0
            if name.startswith("p-value"):
                continue
            beyond = "" if broken(row) is None else ", beyond 3 standard errors"
            if covers < COVERS:
                yield f"{name}, {case} ({topic}): covers {covers:.3f} in {row['intervals']} draws{beyond}"
            if false > FALSE:
                yield f"{name}, {case} ({topic}): false in {false:.3f} of {row['claims']} draws{beyond}"


def page() -> str:
    lines = [
        "# Do the intervals cover?",
        "",
        "Each row: draws of a known population; *covers*: the share of printed 95 % intervals that hold the truth (bar:"
        " .93); *no interval*: the share of draws in which none is printed, with the reason; *false verdict*: the share"
        ' of draws with a "better", FITS or the like that is false (bar: .06). *Before*: the same script on the code'
        " before the change. Widths are medians.",
        "",
        "`python benchmarks/intervals.py --draws 200` makes it all; `--only TOPIC` one part. Populations: benchmarks/"
        "interval_bench/populations.py (correlation .3 within a group).",
        "",
    ]
    if short := list(losses()):
        lines += [
            "On the wrong side of a bar; all within 3 standard errors of the simulation unless it says otherwise:",
            "",
        ]
        lines += [f"- {line}" for line in short]
        lines += [""]
    for topic in TOPICS:
        lines += table(topic)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TOPICS)
    parser.add_argument("--case")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--old", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for topic in () if options.table else (options.only,) if options.only else TOPICS:
        found = measure(topic, options.draws, options.seed, options.case)
        if options.case is not None:
            print(json.dumps(found["rows"], indent=1))
            continue
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{topic}.{'old.' if options.old else ''}json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.case is not None:
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    failed = [(key, why) for topic in TOPICS for key, row in kept(topic, old=False).items() if (why := broken(row))]
    for (row, case), why in failed:
        print(f"BREAKS THE BAR: {row}, {case}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
