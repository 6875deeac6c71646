from __future__ import annotations

from stage1.runs import progress
from stage1.runs.progress import Progress


def test_without_a_terminal_a_line_at_most_every_ten_seconds_with_the_time_that_is_left(monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress().bar("images", 400, 100) as advance:  # 100 of an earlier attempt say nothing of the pace
        for _ in range(25):
            now += 4.0
            advance(8, "epoch 1 of 4")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 8  # 100 s in calls of 4 s: each third one
    assert lines[0] == "  images: 124/400, 2 min left, epoch 1 of 4"
    assert lines[-1] == "  images: 292/400, 54 s left, epoch 1 of 4"


def test_quiet_says_nothing(capsys):
    with Progress(quiet=True).bar("images", 3) as advance:
        advance(3, "done")
    assert capsys.readouterr() == ("", "")
