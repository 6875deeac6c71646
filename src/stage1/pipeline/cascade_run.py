"""cascade run: from paths to a record of answers; and what people are shown of runs and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from stage1.errors import MissingError
from stage1.inference.cascade.answers import Answer, header, open_log
from stage1.inference.cascade.run import Tally, run_cascade
from stage1.inference.cascade.stages import fixed_rules, open_cascade
from stage1.inference.inputs import iterate_inputs
from stage1.pipeline.cascading import certified_rules


class _Printed:
    """Answers as JSON lines on a text stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, answer: Answer) -> None:
        self._stream.write(answer.to_line() + "\n")
        self._stream.flush()


def answer_images(
    path: Path,
    images: Sequence[str],
    *,
    certified: Path | None,
    output: Path | None,
    stdin: BinaryIO | None,
    stdout: TextIO,
) -> tuple[Tally, list[str]]:
    """Answer images by a cascade; into `output` where given, else to `stdout`. Returns the tally and notes for people.

    Raises ConfigError where thresholds are open (auto) and no evaluation is given, and as open_cascade and open_log do.
    """
    cascade = open_cascade(path)
    notes = ["no certificate: thresholds of the file (give --certified FOLDER of `stage1 cascade evaluate`)"]
    if certified is None:
        rules = fixed_rules(cascade.config)
    else:
        if not certified.is_dir():
            raise MissingError(f"--certified {certified}: no such folder; make it with `stage1 cascade evaluate`")
        rules, document = certified_rules(certified, cascade)
        notes = [document["certificate"]["statement"]]
    inputs = iterate_inputs(images, stdin, on_left_out=notes.append)
    if output is None:
        return run_cascade(cascade, inputs, _Printed(stdout), rules=rules), notes
    head = header(cascade.digest, [rule.to_document() for rule in rules], cascade.names)
    with open_log(output, head) as (done, sink):
        return run_cascade(cascade, inputs, sink, rules=rules, done=[answer.image for answer in done]), notes


def tally_lines(tally: Tally) -> list[str]:
    """What a run did, for people."""
    by = ", ".join(f"{name} {count}" for name, count in tally.by.items()) or "none"
    lines = [f"{tally.answered} answered ({by}), {tally.fallbacks} by a fallback, {tally.skipped} were answered before"]
    for stage, outcomes in tally.failed.items():
        lines.append(f"  {stage}: {', '.join(f'{count} {kind}' for kind, count in sorted(outcomes.items()))}")
    return lines


def evaluation_lines(document: dict[str, Any]) -> list[str]:
    """An evaluation for people: the sentence, the risks, val_test, costs, files."""
    certificate = document["certificate"]
    lines = ["", f"{'CERTIFIED' if certificate['certified'] else 'NOT CERTIFIED'}  {certificate['statement']}", ""]
    for name, risk in certificate["risks"].items():
        limit = "" if risk["target"] is None else f"  limit {risk['target']:.4g}"
        seen = "-" if risk["observed"] is None else f"{risk['observed']:.4f}"
        lines.append(
            f"{name:<16} {seen}  upper bound {risk['bound']:.4f}{limit}  ({risk['errors']} of {risk['n']} on val_calib)"
        )
    if (test := document["test"]) is not None:
        lines.append(
            f"on val_test: {test['misses']} of {test['positives']} missed, {test['false_exits']} of {test['negatives']} raised falsely"
            + (f"; CONTRADICTS {', '.join(test['contradicted'])}" if test["contradicted"] else "; no contradiction")
        )
    chosen = document["chosen"]
    lines.append(
        f"{chosen['deferred']:.1%} deferred, {1000 * chosen['money']:.4g} {document['currency']} for 1,000 images, {chosen['milliseconds']:.4g} ms an image"
    )
    for cost in document["costs"]:
        median = "-" if cost["median_milliseconds"] is None else f"{cost['median_milliseconds']:.4g}"
        waited = cost["waited_milliseconds"]
        budget = f", and {waited:.4g} ms of waiting for its budget on average, which is no cost" if waited >= 1 else ""
        lines.append(
            f"  {cost['stage']}: {cost['calls']} calls, {cost['failed']:.1%} failed, median {median} ms{budget}"
        )
    return [*lines, "", *document["written"], *document["notes"]]
