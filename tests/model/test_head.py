from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig
from stage1.errors import DataError, IntegrityError, MissingError
from stage1.model.head import (
    BEST_WEIGHTS,
    Ensemble,
    GatedHead,
    SelectiveHead,
    build_gate,
    build_head,
    feature_statistics,
    gate_inputs,
    load_head,
    members_of,
    save_weights,
    split,
)

LINEAR = HeadConfig(kind="linear")
MLP = HeadConfig(kind="mlp", hidden=7, dropout=0.5)


def features(n: int = 50, dim: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(5.0, 2.0, size=(n, dim)).astype(np.float32)


def half_way(x: np.ndarray) -> np.ndarray:
    spread = x.std(axis=0, dtype=np.float64)
    return np.sqrt(spread * np.sqrt((spread**2).mean()))


def test_linear_head_is_a_matrix_on_standardised_features() -> None:
    x = features()
    head = build_head(LINEAR, 4, 3, seed=0).eval()
    head.standardise(*feature_statistics(x))
    weight, bias = (p.detach().numpy().astype(np.float64) for p in head.parameters())
    expected = (x - x.mean(axis=0)) / half_way(x) @ weight.T + bias
    np.testing.assert_allclose(head(torch.tensor(x)).detach().numpy(), expected, atol=1e-6)


def test_mlp_head_equals_its_formula() -> None:
    x = features()
    head = build_head(MLP, 4, 2, seed=0).eval()
    w1, b1, w2, b2 = (p.detach().double() for p in head.parameters())
    hidden = torch.tensor(x, dtype=torch.float64) @ w1.T + b1
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    np.testing.assert_allclose(head(torch.tensor(x)).detach().numpy(), (gelu @ w2.T + b2).numpy(), atol=1e-5)
    assert w1.shape == (7, 4)


@pytest.mark.parametrize("config", [LINEAR, MLP])
def test_weights_follow_from_the_seed_and_the_global_generator_is_untouched(config: HeadConfig) -> None:
    before = torch.get_rng_state()
    one, same, other = (build_head(config, 4, 2, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_the_normalisation_is_fixed_not_learned() -> None:
    head = build_head(LINEAR, 4, 2, seed=0)
    assert {name for name, _ in head.named_parameters()} == {"layers.0.weight", "layers.0.bias"}
    assert set(head.state_dict()) == {"mean", "scale", "layers.0.weight", "layers.0.bias"}


def test_statistics_equal_numpy_also_far_from_zero_and_from_a_memory_map(tmp_path: Path) -> None:
    x = (np.random.default_rng(2).normal(size=(9000, 3)) * [1.0, 0.5, 20.0] + [1000.0, 0.0, -3.0]).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mean, scale = feature_statistics(np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale, half_way(x), rtol=1e-6)
    assert mean.dtype == scale.dtype == np.float32


def test_dead_features_are_centred_and_not_amplified() -> None:
    x = features()
    x[:, 0] = 0.0
    x[:, 1] = 123.456
    x[0, 1] += 1e-5  # one rounding step: noise, not signal
    mean, scale = feature_statistics(x)
    common = np.sqrt((x[:, 2:].std(axis=0, dtype=np.float64) ** 2).sum() / 4)
    np.testing.assert_allclose(scale[:2], common, rtol=1e-6)
    assert mean[0] == 0.0
    assert (feature_statistics(np.full((5, 3), 7.0, dtype=np.float32))[1] == 1.0).all()


def test_the_first_probabilities_are_the_class_frequencies() -> None:
    head = build_head(LINEAR, 4, 3, seed=0).eval()
    head.start_at(np.array([1.0, 2.0, 5.0]))
    with torch.no_grad():
        probabilities = head(torch.zeros(1, 4)).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, [[0.125, 0.25, 0.625]], atol=1e-6)


@pytest.mark.parametrize("dim, classes", [(0, 2), (4, 1)])
def test_impossible_shapes_are_refused(dim: int, classes: int) -> None:
    with pytest.raises(DataError):
        build_head(LINEAR, dim, classes, seed=0)


@pytest.mark.parametrize("config", [LINEAR, MLP])
def test_saved_head_comes_back_bit_equal_from_file_and_folder(config: HeadConfig, tmp_path: Path) -> None:
    head = build_head(config, 4, 3, seed=5).eval()
    head.standardise(*feature_statistics(features()))
    save_weights(tmp_path / BEST_WEIGHTS, head.state_dict())
    x = torch.tensor(features())
    for path in (tmp_path, tmp_path / BEST_WEIGHTS):
        loaded = load_head(path, config, 4, 3)
        assert not loaded.training
        assert torch.equal(loaded(x), head(x))


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.pth", "two.pth"):
        save_weights(tmp_path / name, build_head(MLP, 4, 3, seed=5).state_dict())
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "two.pth").read_bytes()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / BEST_WEIGHTS, build_head(LINEAR, 4, 3, seed=5).state_dict())
    with pytest.raises(IntegrityError, match="mlp head"):
        load_head(tmp_path, MLP, 4, 3)
    with pytest.raises(IntegrityError, match=r"\(4,\), expected \(5,\)"):
        load_head(tmp_path, LINEAR, 5, 3)
    with pytest.raises(IntegrityError, match="classes 2"):
        load_head(tmp_path, LINEAR, 4, 2)
    with pytest.raises(MissingError, match="stage1 train"):
        load_head(tmp_path / "nowhere", LINEAR, 4, 3)


def test_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / BEST_WEIGHTS
    save_weights(path, build_head(LINEAR, 4, 3, seed=5).state_dict())
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="damaged weights file"):
            load_head(path, LINEAR, 4, 3)
    torch.save(build_head(LINEAR, 4, 3, seed=5), path)  # a whole module: needs the unpickler that is off
    with pytest.raises(IntegrityError):
        load_head(path, LINEAR, 4, 3)


# ---- heads with a gate, ensembles ------------------------------------------------------------------------------------

KINDS: tuple[Any, ...] = ("selectivenet", "deepgamblers", "sat")
SELECTIVE = [HeadConfig(kind=kind, hidden=7, dropout=0.0) for kind in KINDS]
OTHERS = [
    *SELECTIVE,
    HeadConfig(kind="mlp", hidden=7, members=3),
    HeadConfig(kind="sat", hidden=7, members=2),
    HeadConfig(kind="mlp", hidden=7, gate="mlp"),
    HeadConfig(members=2, gate="linear"),
]


def whole(config: HeadConfig, dim: int, n_classes: int, seed: int) -> torch.nn.Module:
    head = build_head(config, dim, n_classes, seed)
    if config.gate not in ("linear", "mlp"):
        return head.eval()
    return GatedHead(head, build_gate(config, dim + n_classes + 1, 0.7, -0.2, seed)).eval()


@pytest.mark.parametrize("config", SELECTIVE, ids=lambda config: config.kind)
def test_selective_head_equals_its_formula(config: HeadConfig) -> None:
    x = features()
    head = build_head(config, 4, 3, seed=0).eval()
    assert isinstance(head, SelectiveHead)
    head.standardise(*feature_statistics(x))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        logits, gate = split(head(torch.tensor(x)))
        hidden = torch.nn.functional.gelu(
            head.trunk[0](torch.tensor((x - x.mean(axis=0)) / half_way(x), dtype=torch.float32))
        )
        if config.kind == "selectivenet":
            expected = head.classifier(hidden)
            assert head.gate is not None
            gated = head.gate[2](torch.nn.functional.gelu(head.gate[0](hidden)))[:, 0]
        else:
            every = head.classifier(hidden)
            abstention = every.softmax(dim=1)[:, 3]
            expected, gated = every[:, :3], torch.log((1 - abstention) / abstention)
    np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=1e-5)
    assert gate is not None
    np.testing.assert_allclose(gate.numpy(), gated.numpy(), atol=1e-4)


@pytest.mark.parametrize("config", SELECTIVE, ids=lambda config: config.kind)
def test_gates_start_open_and_classes_at_their_frequencies(config: HeadConfig) -> None:
    head = build_head(config, 4, 3, seed=0).eval()
    head.start_at(np.array([1.0, 2.0, 5.0]))
    with torch.no_grad():
        logits, gate = split(head(torch.zeros(1, 4)))
    assert gate is not None
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), [[0.125, 0.25, 0.625]], atol=1e-6)
    assert float(torch.sigmoid(gate)) == pytest.approx(0.8 if config.kind == "selectivenet" else 0.9, abs=1e-5)


def test_without_its_gate_a_selective_head_gives_logits_alone() -> None:
    head = build_head(SELECTIVE[1].model_copy(update={"gate": "none"}), 4, 2, seed=0)
    assert isinstance(head(torch.zeros(3, 4)), torch.Tensor)
    assert head(torch.zeros(3, 4)).shape == (3, 2)


def test_an_ensemble_is_the_mean_of_its_members_and_starts_from_the_single_head() -> None:
    x = torch.tensor(features())
    head = build_head(HeadConfig(kind="sat", hidden=7, members=3), 4, 2, seed=0).eval()
    assert isinstance(head, Ensemble)
    made = [split(member(x)) for member in members_of(head)]
    logits, gate = split(head(x))
    assert gate is not None
    np.testing.assert_allclose(logits.detach(), sum(m[0].detach() for m in made) / 3, atol=1e-6)
    gates = [part for _, part in made if part is not None]
    np.testing.assert_allclose(gate.detach(), sum(part.detach() for part in gates) / 3, atol=1e-6)
    one = build_head(HeadConfig(kind="sat", hidden=7), 4, 2, seed=0).eval()
    assert torch.equal(split(one(x))[0], made[0][0])
    assert not torch.equal(made[1][0], made[0][0])


def test_a_fitted_gate_looks_at_features_and_at_the_answer() -> None:
    head = whole(HeadConfig(gate="linear"), 4, 3, 0)
    assert isinstance(head, GatedHead)
    x = torch.tensor(features())
    logits, gate = split(head(x))
    made = gate_inputs(x, logits)
    ordered = logits.sort(dim=1).values
    np.testing.assert_allclose(made[:, :4].detach(), x)
    np.testing.assert_allclose(made[:, 4:7].detach(), (logits - logits.mean(dim=1, keepdim=True)).detach(), atol=1e-6)
    np.testing.assert_allclose(made[:, 7].detach(), (ordered[:, 2] - ordered[:, 1]).detach(), atol=1e-6)
    judged = head.gate.head(made)
    assert gate is not None
    expected = 0.7 * made[:, 7] - 0.2 + judged[:, 1] - judged[:, 0]
    np.testing.assert_allclose(gate.detach(), expected.detach(), atol=1e-6)


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: f"{config.kind}-{config.members}-{config.gate}")
def test_every_kind_comes_back_bit_equal_and_fits_no_other(config: HeadConfig, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    head = whole(config, 4, 3, 5)
    assert torch.equal(before, torch.get_rng_state())
    save_weights(tmp_path / BEST_WEIGHTS, head.state_dict())
    loaded = load_head(tmp_path, config, 4, 3)
    x = torch.tensor(features())
    for ours, theirs in zip(split(loaded(x)), split(head(x)), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)  # type: ignore[arg-type]
    assert loaded.gated == (split(head(x))[1] is not None)
    with pytest.raises(IntegrityError, match="not a linear head"):
        load_head(tmp_path, LINEAR, 4, 3)
