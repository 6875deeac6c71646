from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import ConfigError, IntegrityError, Stage1Error
from stage1.storage import files
from stage1.training.checkpoint import (
    check_same_run,
    config_digest,
    data_digest,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    run_facts,
    save_checkpoint,
)

TENSORS = {"model.weight": torch.arange(6.0).reshape(2, 3), "optimizer.0.step": torch.tensor(3.0)}


def facts(seed: int = 0, **config: object) -> dict:
    return run_facts(TrainConfig(**config), HeadConfig(), dim=4, n_classes=2, seed=seed)  # type: ignore[arg-type]


def test_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
    content = {"loss": 0.1 + 0.2, "best": None, "rows": [{"epoch": 1}]}
    for name in ("a.safetensors", "b.safetensors"):
        save_checkpoint(tmp_path / name, TENSORS, content)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded is not None
    assert {key: loaded[1][key] for key in content} == content
    assert set(loaded[0]) == set(TENSORS)
    assert all(torch.equal(loaded[0][name], tensor) for name, tensor in TENSORS.items())


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "last.safetensors") is None


def test_any_truncation_is_named_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, {})
    whole = path.read_bytes()
    for size in (0, 4, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(IntegrityError, match="damaged checkpoint"):
            load_checkpoint(path)


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, {"epoch": 1})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(Stage1Error, match="No space left"):
        save_checkpoint(path, TENSORS, {"epoch": 2})
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_digest_of_the_config_ignores_what_cannot_change_a_weight() -> None:
    assert config_digest(facts()) == config_digest(facts(checkpoint_every=7, tensorboard=True))
    different = [facts(epochs=7), facts(ema_decay=0.0), facts(seed=1), facts(select_by="augrc"), facts(patience=3)]
    assert len({config_digest(item) for item in [facts(), *different]}) == 6


def test_digest_of_the_data_sees_values_order_type_and_split_and_not_the_memory_layout() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    variants = [x, x[::-1], x.astype(np.float64), x.reshape(3, 4), x + 1]
    assert len({data_digest(item) for item in variants}) == 5
    assert data_digest(x) == data_digest(np.asfortranarray(x))
    assert data_digest(x[:2], x[2:]) != data_digest(x[:1], x[1:])


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    stored = {"run": facts(), "config_digest": config_digest(facts()), "data_digest": "d"}
    check_same_run(tmp_path, stored, facts(), "d")
    with pytest.raises(ConfigError, match=r"train\.epochs 60 -> 7.*remove the file"):
        check_same_run(tmp_path, stored, facts(epochs=7), "d")
    with pytest.raises(ConfigError, match=r"seed 0 -> 1"):
        check_same_run(tmp_path, stored, facts(seed=1), "d")
    with pytest.raises(ConfigError, match=r"other features or labels.*remove the file"):
        check_same_run(tmp_path, stored, facts(), "e")


def test_restored_optimizer_takes_the_same_next_step() -> None:
    def trained(steps: int) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        for step in range(steps):
            parameter.grad = torch.full((3,), float(step + 1))
            optimizer.step()
        return parameter, optimizer

    straight, _ = trained(5)
    halfway, optimizer = trained(3)
    resumed = torch.nn.Parameter(halfway.detach().clone())
    fresh = torch.optim.AdamW([resumed], lr=0.1, fused=True)
    restore_optimizer(fresh, flatten_optimizer(optimizer))
    for step in (3, 4):
        resumed.grad = torch.full((3,), float(step + 1))
        fresh.step()
    assert torch.equal(resumed, straight)
