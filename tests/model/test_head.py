from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig
from stage1.errors import DataError, IntegrityError, MissingError
from stage1.model.head import BEST_WEIGHTS, build_head, feature_statistics, load_head, save_weights

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
