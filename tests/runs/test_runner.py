"""The runner on stages of its caller: what it asks of each, in which order, and that it knows none by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from stage1.config import RunConfig
from stage1.errors import ConfigError, NotCertifiable, SourceChanged
from stage1.runs import Context, RunDir, Stage, execute, execute_one, opened, outlook
from stage1.runs.progress import Progress

QUIET = Progress(quiet=True)


class Told:
    """Two stages that write down what they are asked: `first` makes one.txt, `second` reads it and makes two.txt."""

    def __init__(self, **second) -> None:
        self.asked: list[str] = []
        self.first = self.stage("first", "one.txt", (), ("seed",), reads_sources=True)
        self.second = self.stage("second", "two.txt", ("one.txt",), (), **second)
        self.stages = (self.first, self.second)

    def stage(self, name: str, writes: str, reads: tuple[str, ...], sections: tuple[str, ...], **more) -> Stage:
        def work(run: RunDir, context: Context) -> list[Path]:
            self.asked.append(f"{name}.work")
            (run / writes).write_text(f"{name} {run.config.seed}")
            return [run / writes]

        def told(hook: str):
            return lambda *given: self.asked.append(f"{name}.{hook}")

        hooks = {hook: told(hook) for hook in ("consistent", "preflight", "ready", "checked")}
        return Stage(name, sections, lambda config: reads, work, **{**hooks, **more})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def seeded(seed: int) -> RunConfig:
    return RunConfig.model_validate({"seed": seed})


def test_all_stages_in_order_with_their_checks_around_them(folder):
    told = Told()
    with opened(folder, seeded(1)) as run:
        result = execute(run, told.stages, QUIET)
    assert result.done == ("first", "second")
    assert (result.certificate, result.bundle) == (None, None)
    before = ["first.consistent", "second.consistent", "first.preflight", "second.preflight"]
    each = [f"{name}.{hook}" for name in ("first", "second") for hook in ("ready", "work", "checked")]
    assert told.asked == before + each


def test_what_is_unchanged_is_skipped_and_still_checked(folder):
    with opened(folder, seeded(1)) as run:
        execute(run, Told().stages, QUIET)
    told = Told()
    with opened(folder, seeded(1)) as run:
        assert execute(run, told.stages, QUIET).skipped == ("first", "second")
        assert [row["skip"] for row in outlook(run, told.stages)] == [True, True]
    assert not any(line.endswith((".work", ".preflight")) for line in told.asked)
    assert told.asked.count("first.checked") == 1
    with opened(folder, seeded(2), allow_change=True) as run:
        assert execute(run, told.stages, QUIET).done == ("first", "second")
    assert (folder / "two.txt").read_text() == "second 2"


def test_a_stage_alone_asks_for_those_before_it(folder):
    told = Told(wanted=lambda config: config.seed > 1, asked_by="seed=2")
    with opened(folder, seeded(1)) as run:
        with pytest.raises(ConfigError, match="no stage 'second'; ask for it with seed=2"):
            execute_one(run, told.stages, "second", QUIET)
        assert [row["stage"] for row in outlook(run, told.stages)] == ["first"]
    told = Told()
    with opened(folder, seeded(1)) as run:
        with pytest.raises(ConfigError, match="'first' is not done or out of date"):
            execute_one(run, told.stages, "second", QUIET)
        assert execute_one(run, told.stages, "first", QUIET)
        told.asked.clear()
        assert execute_one(run, told.stages, "second", QUIET)
        assert told.asked == ["second.ready", "first.checked", "second.work", "second.checked"]
        assert not execute_one(run, told.stages, "second", QUIET)


def test_a_stage_that_is_not_ready_ends_the_run_before_its_work(folder):
    def refuse(run: RunDir, context: Context) -> None:
        raise NotCertifiable("not yet")

    told = Told(ready=refuse)
    with opened(folder, seeded(1)) as run, pytest.raises(NotCertifiable, match="not yet"):
        execute(run, told.stages, QUIET)
    assert "first.work" in told.asked
    assert "second.work" not in told.asked


def test_what_no_longer_holds_is_done_again_when_asked_for_alone(folder):
    told = Told(holds=lambda run: False)
    with opened(folder, seeded(1)) as run:
        execute(run, told.stages, QUIET)
        assert execute(run, told.stages, QUIET).skipped == ("first", "second")
        assert execute_one(run, told.stages, "second", QUIET)


def test_a_changed_source_puts_those_that_read_sources_out_of_date(folder):
    told = Told()
    with opened(folder, seeded(1)) as run:
        execute(run, told.stages, QUIET)

        def meets_other_bytes(run: RunDir, context: Context) -> list[Path]:
            raise SourceChanged("one.jpg: other bytes")

        later = told.stage("later", "three.txt", ("two.txt",), ())
        stages = (*told.stages, Stage("later", (), later.reads, meets_other_bytes))
        with pytest.raises(SourceChanged):
            execute(run, stages, QUIET)
        assert [row["skip"] for row in outlook(run, stages)] == [False, False, False]


def test_processes_of_torchrun_share_only_what_is_distributed(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = Told(distributed=True)
    with opened(folder, seeded(1)) as run:
        with pytest.raises(ConfigError, match=r"`stage1 first` is the work of one process.*only `second` takes many"):
            execute_one(run, told.stages, "first", QUIET)
        with pytest.raises(ConfigError, match="'first' is not done"):
            execute_one(run, told.stages, "second", QUIET)
