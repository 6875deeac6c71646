"""Every image through the stages until one exits, or (for a certificate) through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from stage1.cascade.answers import Answer, Call, Sink, recorded
from stage1.cascade.rules import DEFAULT, Rule, final_answers
from stage1.cascade.stages import Cascade
from stage1.errors import DataError
from stage1.inference.inputs import Input
from stage1.inference.predictor import one_line
from stage1.inference.tables import valid
from stage1.runtime.stream import read_item
from stage1.storage.files import digest_bytes

# Images in memory at once: enough to keep the connections of a stage busy.
_CHUNK, _CHUNK_BYTES = 64, 64 << 20


@dataclass(slots=True)
class Tally:
    """What a run did. by: answers of each stage (and "default"); failed: calls by stage and outcome."""

    answered: int = 0
    skipped: int = 0
    fallbacks: int = 0
    by: dict[str, int] = field(default_factory=dict)
    failed: dict[str, dict[str, int]] = field(default_factory=dict)

    def count(self, answer: Answer) -> None:
        self.answered += 1
        self.fallbacks += answer.fallback
        if answer.answered_by is not None:
            self.by[answer.answered_by] = self.by.get(answer.answered_by, 0) + 1
        for call in answer.calls:
            if call.probability is None:
                outcomes = self.failed.setdefault(call.stage, {})
                outcomes[call.outcome] = outcomes.get(call.outcome, 0) + 1


def run_cascade(
    cascade: Cascade,
    inputs: Iterable[Input],
    sink: Sink,
    *,
    rules: tuple[Rule, ...] | None,
    done: Iterable[str] = (),
    each: Callable[[Answer], None] | None = None,
) -> Tally:
    """Answer every image once and hand it to `sink` the moment it is final. An image given twice is answered once.

    rules: of each stage; None: ask every stage for every image and decide nothing. done: images not to be asked again.
    each: called with every answer. An image that cannot be read is answered by the default, with `error`.
    """
    tally, seen = Tally(), {valid(name) for name in done}
    for chunk in _chunks(inputs, seen, tally):
        for answer in _answers(cascade, chunk, rules):
            sink.write(answer)
            tally.count(answer)
            if each is not None:
                each(answer)
    return tally


def decide(
    cascade: Cascade,
    image: str,
    identity: str | None,
    calls: Sequence[Call],
    rules: tuple[Rule, ...],
    error: str | None = None,
) -> Answer:
    """The answer of the whole from what its stages said."""
    config = cascade.config
    asked = Answer(image, identity, tuple(calls), error=error)
    final = final_answers(recorded([asked], cascade.names, config.classes), rules, config.default_probability)
    place = int(final.stage[0])
    return Answer(
        image,
        identity,
        asked.calls,
        config.classes[int(final.positive[0])],
        float(final.probability[0]),
        "default" if place == DEFAULT else cascade.names[place],
        bool(final.fallback[0]),
        error,
    )


def _answers(
    cascade: Cascade, chunk: list[tuple[str, bytes | str]], rules: tuple[Rule, ...] | None
) -> Iterator[Answer]:
    identities: dict[int, str] = {}
    calls: list[list[Call]] = [[] for _ in chunk]
    for index, (name, data) in enumerate(chunk):
        if isinstance(data, bytes):
            identities[index] = digest_bytes(data)
        else:
            yield decide(cascade, name, None, [], rules, data) if rules else Answer(name, None, (), error=data)
    left = list(identities)
    for place, stage in enumerate(cascade.stages):
        images = [(index, identities[index], data) for index in left if isinstance(data := chunk[index][1], bytes)]
        left, last = [], place == len(cascade.stages) - 1
        for index, call in stage.ask(images):
            calls[index].append(call)
            name, identity = chunk[index][0], identities[index]
            if rules is None:
                answer = Answer(name, identity, tuple(calls[index]))
            else:
                answer = decide(cascade, name, identity, calls[index], rules)
            # A fallback before the last stage is only what would be said if all that follow failed.
            if last or (rules is not None and not answer.fallback):
                yield answer
            else:
                left.append(index)
        left.sort()


def _chunks(inputs: Iterable[Input], seen: set[str], tally: Tally) -> Iterator[list[tuple[str, bytes | str]]]:
    """(name, bytes, or in one line why there are none) of each image that was not seen yet."""
    chunk: list[tuple[str, bytes | str]] = []
    size = 0
    for one in inputs:
        if valid(one.name) in seen:
            tally.skipped += 1
            continue
        seen.add(valid(one.name))
        try:
            data: bytes | str = read_item(one.item)
        except (OSError, DataError) as error:
            data = one_line(error)
        chunk.append((one.name, data))
        size += len(data)
        if len(chunk) == _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
