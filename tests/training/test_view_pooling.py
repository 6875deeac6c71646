"""Heads on views: the torch pools are the numpy ones, and multiple-instance learning finds what whole images hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import Checkpointed, ConfigError, DataError
from stage1.model.head import load_head
from stage1.training import train_head
from stage1.training.selection import all_logits
from stage1.training.view_pooling import ViewTraining, image_logits, pooled
from stage1.views import Pool

POOLS = ("mean", "lse:8", "lse:0.5", "topk:1", "topk:3", "topk:50")


@pytest.mark.parametrize("pool", POOLS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    views=st.integers(1, 12),
    scale=st.sampled_from([0.1, 3.0, 40.0]),
)
def test_torch_pools_equal_those_that_ship(pool, seed, n, views, scale):
    logits = np.random.default_rng(seed).normal(0, scale, (n, views, 2))
    assert np.allclose(pooled(torch.from_numpy(logits), pool).numpy(), Pool(pool)(logits), rtol=1e-9, atol=1e-9 * scale)


def test_more_classes_have_the_mean_alone():
    logits = np.random.default_rng(0).normal(size=(4, 6, 3))
    assert np.allclose(pooled(torch.from_numpy(logits), "mean").numpy(), Pool("mean")(logits))
    with pytest.raises(ConfigError, match="'lse:8' with 3 classes"):
        pooled(torch.from_numpy(logits), "lse:8")
    with pytest.raises(ConfigError, match="3"):
        ViewTraining("mil", "topk:2").check_classes(3)


@pytest.mark.parametrize("pool", ["max", "", "mean:3", "median"])
def test_unknown_pools_are_named(pool):
    with pytest.raises(ConfigError, match=r"views\.pool"):
        ViewTraining("mil", pool)


def test_gradients_of_a_pool_are_those_of_its_differences():
    logits = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    for pool in ("mean", "lse:2", "topk:2"):
        assert torch.autograd.gradcheck(lambda values, pool=pool: pooled(values, pool), (logits,))


def test_image_logits_of_views_are_the_pooled_logits_of_the_head():
    torch.manual_seed(0)
    head, views = torch.nn.Linear(4, 2), torch.randn(3, 5, 4)
    expected = pooled(torch.stack([head(views[:, view]) for view in range(5)], dim=1), "lse:8")
    assert torch.allclose(image_logits(head, views, "lse:8"), expected, atol=1e-6)
    assert torch.equal(image_logits(head, views[:, 0], None), head(views[:, 0]))
    assert np.allclose(all_logits([head], views.numpy(), "lse:8")[0], expected.detach().numpy(), atol=1e-6)


# ---- training ----------------------------------------------------------------------------------------------------


def bags(n: int, seed: int, views: int = 10, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """View 0, the whole, shows the object at a tenth of its strength; one other view of a positive shows it fully."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = (0, 1)
    features = rng.normal(size=(n, views, dim))
    direction = np.zeros(dim)
    direction[:3] = 4.0 / np.sqrt(3)
    positive = np.flatnonzero(labels)
    features[positive, rng.integers(1, views, len(positive))] += direction
    features[positive, 0] += direction / 10
    return features.astype(np.float32), labels.astype(np.int64)


def trained(folder, train, select, views=None, head=None, **config):
    values = {"epochs": 30, "batch_size": 64, "learning_rate": 0.03, "patience": 30, **config}
    options = {"stop": values.pop("stop", None), "fresh": values.pop("fresh", False)}
    return train_head(
        *train,
        *select,
        config=TrainConfig(**values),
        head=head or HeadConfig(),
        n_classes=2,
        seed=1,
        folder=folder,
        views=views,
        **options,
    )


def error_of(result, pool, data, aggregator=None):
    features, labels = data
    logits = all_logits([result.head], features, pool)[0]
    return float((logits.argmax(axis=1) != labels).mean())


def test_mil_finds_the_view_that_shows_it(tmp_path):
    train, select, test = bags(600, 0), bags(300, 1), bags(1500, 2)
    mil = trained(tmp_path / "mil", train, select, ViewTraining("mil", "lse:8"))
    alone = trained(tmp_path / "whole", (train[0][:, 0], train[1]), (select[0][:, 0], select[1]))
    error_alone = error_of(alone, None, (test[0][:, 0], test[1]))
    error_mil = error_of(mil, "lse:8", test)
    # The best rule on the whole view alone errs with Phi(-0.2) = .42, knowing the view with Phi(-2) = .02.
    assert error_alone > 0.36
    assert error_mil < 0.12
    # What was judged on val_select is what the shipped aggregator gives there.
    view_logits = np.stack([all_logits([mil.head], select[0][:, view])[0] for view in range(10)], axis=1)
    shipped = Pool("lse:8")(view_logits)
    assert float((shipped.argmax(axis=1) == select[1]).mean()) == pytest.approx(mil.metrics["accuracy"])


def test_every_view_as_an_image_of_its_own_is_plain_training_on_the_rows(tmp_path):
    train, select = bags(80, 0), bags(60, 1)
    of_views = trained(
        tmp_path / "views", train, select, ViewTraining("views", "mean"), epochs=3, ema_decay=0.0, patience=3
    )
    rows = (train[0].reshape(-1, 12), np.repeat(train[1], 10))
    plain = trained(tmp_path / "rows", rows, rows, epochs=3, ema_decay=0.0, patience=3)
    assert of_views.epochs_run == plain.epochs_run == 3
    losses = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("views", "rows")]
    column = losses[0][0].split(",").index("train_loss")
    assert [row.split(",")[column] for row in losses[0]] == [row.split(",")[column] for row in losses[1]]


def test_mil_with_the_mean_of_one_view_is_training_on_it(tmp_path):
    train, select = bags(80, 0), bags(60, 1)
    one = trained(
        tmp_path / "one",
        (train[0][:, :1], train[1]),
        (select[0][:, :1], select[1]),
        ViewTraining("mil", "mean"),
        epochs=4,
    )
    plain = trained(tmp_path / "plain", (train[0][:, 0], train[1]), (select[0][:, 0], select[1]), epochs=4)
    # Pooled logits are (-a/2, +a/2): the same margin, the same loss, the same steps to rounding.
    assert one.best_epoch == plain.best_epoch
    assert one.metrics["nll"] == pytest.approx(plain.metrics["nll"], abs=1e-5)


@pytest.mark.parametrize(
    ("head", "config"),
    [
        (HeadConfig(kind="mlp", hidden=8), {}),
        (HeadConfig(members=3), {}),
        (
            HeadConfig(),
            {
                "objective": "risk",
                "batch_size": 1000,
                "epochs": 150,
                "patience": 150,
                "risk": {"miss_rate": 0.1, "false_exit_rate": 0.1},
            },
        ),
        (HeadConfig(), {"accumulate": 3, "entropy": 0.01}),
    ],
)
def test_other_heads_and_losses_learn_from_views(tmp_path, head, config):
    train, select = bags(300, 0), bags(150, 1)
    result = trained(tmp_path / "run", train, select, ViewTraining("mil", "topk:2"), head=head, **config)
    assert result.metrics["accuracy"] > 0.75
    stored = load_head(tmp_path / "run", head, 12, 2)
    assert np.allclose(all_logits([stored], select[0], "topk:2")[0], all_logits([result.head], select[0], "topk:2")[0])


def test_a_stopped_run_ends_bit_equal(tmp_path):
    train, select, views = bags(100, 0), bags(60, 1), ViewTraining("mil", "lse:8")
    whole = trained(tmp_path / "whole", train, select, views, epochs=4)
    steps = iter(range(100))
    with pytest.raises(Checkpointed):
        trained(tmp_path / "cut", train, select, views, epochs=4, stop=lambda: next(steps) == 5)
    resumed = trained(tmp_path / "cut", train, select, views, epochs=4)
    for name, tensor in whole.head.state_dict().items():
        assert torch.equal(tensor, resumed.head.state_dict()[name]), name
    with pytest.raises(ConfigError, match="pool"):
        trained(tmp_path / "cut", train, select, ViewTraining("mil", "mean"), epochs=4)


def test_what_makes_no_sense_is_named(tmp_path):
    train, select = bags(40, 0), bags(30, 1)
    mil = ViewTraining("mil", "mean")
    with pytest.raises(ConfigError, match="head.kind=sat"):
        trained(tmp_path / "a", train, select, mil, head=HeadConfig(kind="sat"))
    with pytest.raises(ConfigError, match="head.gate=linear"):
        trained(tmp_path / "a", train, select, mil, head=HeadConfig(gate="linear"))
    with pytest.raises(DataError, match=r"float32 \[N, V, D\]"):
        trained(tmp_path / "a", (train[0][:, 0], train[1]), (select[0][:, 0], select[1]), mil)
    with pytest.raises(DataError, match=r"float32 \[N, D\]"):
        trained(tmp_path / "a", train, select)
    with pytest.raises(DataError, match="9 x 12 feature columns, train has 10 x 12"):
        trained(tmp_path / "a", train, (select[0][:, 1:], select[1]), mil)
    broken = train[0].copy()
    broken[3, 4, 5] = np.nan
    with pytest.raises(DataError, match="row 3"):
        trained(tmp_path / "a", (broken, train[1]), select, mil)
