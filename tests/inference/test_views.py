"""Views through the model of colours: aggregated as the frozen policy says, adaptively the same, broken ones by
themselves.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.inference import Predictor, load_bundle
from stage1.inference.outputs import outputs_of_views
from stage1.inference.views import SPREAD, ViewOutputs, look
from stage1.policy import ViewsClaim, on_views
from stage1.runtime.crops import ViewPolicy, cut
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import Engine
from stage1.views import Learned, Pool, Sequence, Step, ViewsDocument

SPEC = Preprocessing(size=16)
CLASSES = ("none", "roadwork")
GRID = ViewPolicy(grid=(2, 2), overlap=0.0)


def scene(seed: int, side: int = 48) -> bytes:
    """Gray with a red or blue patch of some size somewhere."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 140, (side, side, 3))
    top, left, edge = *rng.integers(0, side - 20, 2), rng.integers(8, 20)
    pixels[top : top + edge, left : left + edge] += np.array([60, 0, -60]) * (1 if rng.random() < 0.5 else -1)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def scenes() -> list[bytes]:
    return [scene(seed) for seed in range(90)]


def predictor(model: bytes, views: ViewsDocument | None = None, **options) -> Predictor:
    return Predictor(model, SPEC, CLASSES, views=views, **options)


def by_hand(model: bytes, images: list[bytes], policy: ViewPolicy) -> np.ndarray:
    """The model on one view at a time: float64 [N, V, K]."""
    engine = Engine(model)
    return np.array(
        [
            [engine.run(cut(decode(image), policy, SPEC, [view]))[0][0] for view in range(policy.count)]
            for image in images
        ],
        dtype=np.float64,
    )


@pytest.mark.parametrize(
    "policy", [GRID, ViewPolicy(grid=(3, 3), flips=True), ViewPolicy(whole=False, scales=(0.5, 0.8))]
)
def test_view_outputs_are_the_model_on_each_view(tiny_model, scenes, policy):
    rows, outputs, failures = predictor(tiny_model()).view_outputs(scenes[:7], policy)
    assert rows.tolist() == list(range(7))
    assert not failures
    assert np.allclose(outputs.logits, by_hand(tiny_model(), scenes[:7], policy), atol=1e-5)
    assert outputs.sizes.tolist() == [[48, 48]] * 7
    assert outputs.gate is None


@pytest.mark.parametrize("name", ["mean", "max", "topk:2", "lse:4", "noisy_or"])
def test_answers_are_aggregated_as_the_frozen_policy_says(tiny_model, scenes, name):
    views = ViewsDocument(GRID, Pool(name))
    rows, answered, _ = predictor(tiny_model(), views, batch_size=12).answered(scenes)
    raw = by_hand(tiny_model(), scenes, GRID)
    expected, used, deciding = views.aggregate(raw)
    assert rows.tolist() == list(range(len(scenes)))
    assert np.allclose(answered.logits, expected, atol=1e-5)
    assert answered.trace is not None
    assert (answered.trace.used == used).all()
    agree = answered.trace.deciding == deciding
    # Two views may tie to the last bit of a sum.
    assert agree.mean() > 0.98
    margins = raw[..., 1] - raw[..., 0]
    assert np.allclose(answered.scores().extra[SPREAD], margins.std(axis=1), atol=1e-4)


def test_rows_say_which_view_decided_and_where_it_lies(tiny_model):
    pixels = np.full((40, 60, 3), 120, np.uint8)
    pixels[20:, 30:] = (220, 120, 20)  # red in the lower right quarter
    row = predictor(tiny_model(), ViewsDocument(GRID, Pool("max"))).predict([pixels])[0]
    assert (row.label, row.views, row.view, row.box, row.small) == ("roadwork", 5, "tile r1c1", (20, 30, 40, 60), False)
    small = predictor(tiny_model(), ViewsDocument(GRID, Pool("max"))).predict([pixels[:16, :16]])[0]
    assert small.small


def test_without_views_rows_say_nothing_of_them(tiny_model, scenes):
    row = predictor(tiny_model()).predict(scenes[:1])[0]
    assert (row.views, row.view, row.box, row.small) == (None, None, None, False)


def sequence(low: float, high: float, futility: tuple[float, float] | None = None) -> Sequence:
    """The whole, then the last tile, then the others; the mean of what was seen decides."""
    steps = [Step(Pool("mean"), 1.0 + 0.1 * place, 0.01 * place, low, high, futility) for place in range(GRID.count)]
    return Sequence((0, 4, 2, 1, 3), tuple(steps), {})


@pytest.fixture(scope="module")
def adaptive() -> ViewsDocument:
    return ViewsDocument(GRID, Pool("mean"), sequence(-0.35, 0.3, (-0.02, 0.02)))


@pytest.mark.parametrize("batch_size", [1, 12, 64])
def test_adaptive_answers_equal_the_same_loop_on_complete_arrays(tiny_model, scenes, adaptive, batch_size):
    raw = by_hand(tiny_model(), scenes, GRID)
    expected, used, deciding = adaptive.aggregate(raw)
    assert len(np.unique(used)) > 3, "the problem must have images that stop early and others that do not"
    _, answered, _ = predictor(tiny_model(), adaptive, batch_size=batch_size).answered(scenes)
    assert answered.trace is not None
    assert (answered.trace.used == used).all()
    assert np.allclose(answered.logits, expected, atol=1e-4)
    assert (answered.trace.deciding == deciding).mean() > 0.98
    order = list(adaptive.sequence.order)
    margins = (raw[..., 1] - raw[..., 0])[:, order]
    spread = [row[:count].std() for row, count in zip(margins, used, strict=True)]
    assert np.allclose(answered.trace.spread, spread, atol=1e-4)
    # What the score stage makes of complete views is what a predictor gives view by view.
    _, outputs, _ = predictor(tiny_model()).view_outputs(scenes, GRID)
    again = outputs_of_views(outputs, adaptive, SPEC)
    assert np.allclose(again.logits, answered.logits, atol=1e-6)
    assert np.allclose(again.trace.spread, answered.trace.spread, atol=1e-6)


def test_adaptive_views_are_not_run_past_the_stop(tiny_model, scenes, adaptive, monkeypatch):
    made = predictor(tiny_model(), adaptive, batch_size=16, workers=1)
    rows = []
    run = made.engine.run
    monkeypatch.setattr(made.engine, "run", lambda batch: rows.append(len(batch)) or run(batch))
    _, answered, _ = made.answered(scenes)
    assert sum(rows) == answered.trace.used.sum() < len(scenes) * GRID.count
    assert max(rows) <= 16


@pytest.mark.parametrize("kind", ["all", "adaptive"])
def test_one_decoded_image_is_looked_at_as_among_others(tiny_model, scenes, adaptive, kind):
    made = predictor(tiny_model(), adaptive if kind == "adaptive" else ViewsDocument(GRID, Pool("max")))
    together = made.predict(scenes[:20])
    for index, (data, row) in enumerate(zip(scenes[:20], together, strict=True)):
        alone = made.answer(decode(data), f"#{index}")
        assert (alone.path, alone.label, alone.views, alone.view, alone.box) == (
            row.path,
            row.label,
            row.views,
            row.view,
            row.box,
        )
        assert alone.probability == pytest.approx(row.probability, abs=1e-6)
    assert kind == "all" or len({row.views for row in together}) > 1


@pytest.mark.parametrize("kind", ["all", "adaptive"])
@pytest.mark.parametrize("sizes", [[1] * 12, [3, 9], [12]], ids=str)
def test_a_batch_in_this_thread_is_answered_as_predict_answers(tiny_model, scenes, adaptive, kind, sizes):
    made = predictor(tiny_model(), adaptive if kind == "adaptive" else ViewsDocument(GRID, Pool("max")))
    images = [*scenes[:11], b"no image"]
    together = made.predict(images)
    found, start = [], 0
    for size in sizes:
        found += made.answer_batch(images[start : start + size], with_company=True)
        start += size
    assert [replace(row, path="") for row in found] == [replace(row, path="") for row in together]
    with pytest.raises(ConfigError, match="several views"):
        made.answer_tensors(np.zeros((1, 3, SPEC.size, SPEC.size), np.float32))


def test_large_images_are_cut_at_once_and_give_the_same(tiny_model, adaptive):
    # 4 x 5 x 3 x 16 x 16 bytes of tensors: a 100 px image takes more as pixels.
    large = [scene(seed, side=100) for seed in range(12)]
    expected, used, _ = adaptive.aggregate(by_hand(tiny_model(), large, GRID))
    _, answered, _ = predictor(tiny_model(), adaptive).answered(large)
    assert (answered.trace.used == used).all()
    assert np.allclose(answered.logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["all", "adaptive"])
def test_broken_and_strange_images_do_not_disturb_the_others(tiny_model, scenes, adaptive, kind):
    views = adaptive if kind == "adaptive" else ViewsDocument(GRID, Pool("mean"))
    images = [scenes[0], b"no image", np.zeros((1, 300, 3), np.uint8), scenes[1], np.zeros((300, 1, 3), np.uint8), b""]
    rows = predictor(tiny_model(), views).predict(images)
    assert [row.error is None for row in rows] == [True, False, True, True, True, False]
    alone = predictor(tiny_model(), views).predict([scenes[0], scenes[1]])
    assert rows[0].probability == pytest.approx(alone[0].probability, abs=1e-6)
    assert rows[3].probability == pytest.approx(alone[1].probability, abs=1e-6)
    assert predictor(tiny_model(), views).predict([]) == []
    assert [row.error is None for row in predictor(tiny_model(), views).predict([b"x", b"y"])] == [False, False]


@pytest.mark.parametrize("steps", [None, sequence(-1e37, 1e37)])
def test_a_view_for_which_the_model_gives_infinity_leaves_its_image_unanswered(tiny_model, steps):
    made = predictor(tiny_model(scale=3e38), ViewsDocument(GRID, Pool("mean"), steps))
    pixels = np.full((40, 40, 3), 90, np.uint8)
    good = pixels.copy()
    pixels[:20, :20], pixels[20:, 20:] = (0, 0, 255), (255, 0, 0)  # balanced as a whole, beyond float32 in two tiles
    rows = made.predict([pixels, good])
    assert rows[0].error is not None
    assert "NaN or infinity" in rows[0].error
    assert rows[1].error is None


def test_gate_logits_are_the_mean_over_the_views():
    logits = np.zeros((2, 5, 2), np.float32)
    gate = np.arange(10, dtype=np.float32).reshape(2, 5)
    trace = look(ViewOutputs(logits, gate, np.full((2, 2), 48)), ViewsDocument(GRID, Pool("mean")), SPEC)
    assert trace.gate.tolist() == [2.0, 7.0]


def test_three_classes_by_the_mean(tiny_model, scenes):
    made = Predictor(tiny_model(outputs=3), SPEC, ("a", "b", "c"), views=ViewsDocument(GRID, Pool("mean")))
    _, answered, _ = made.answered(scenes[:5])
    assert np.allclose(answered.logits, by_hand(tiny_model(outputs=3), scenes[:5], GRID).mean(axis=1), atol=1e-5)
    assert (answered.trace.spread >= 0).all()
    assert [row.label for row in made.predict(scenes[:5])] == [
        ("a", "b", "c")[i] for i in answered.logits.argmax(axis=1)
    ]


def test_a_policy_decides_with_the_views_of_its_certificate_alone(tiny_model, bundle_folder, scenes):
    """Every pair of certificate and views but the matching ones is refused."""
    certified = load_bundle(bundle_folder).policy
    made = {
        "whole": None,
        "mean": ViewsDocument(GRID, Pool("mean")),
        "max": ViewsDocument(GRID, Pool("max")),
        "finer": ViewsDocument(ViewPolicy(grid=(3, 3), overlap=0.0), Pool("mean")),
    }
    for of, claimed in made.items():
        policy = on_views(certified, None if claimed is None else ViewsClaim(claimed.digest, claimed.description))
        for name, views in made.items():
            if name == of:
                rows = Predictor(tiny_model(), SPEC, CLASSES, policy, views=views).predict(scenes[:4])
                assert [row.error for row in rows] == [None] * 4
            else:
                with pytest.raises(
                    IntegrityError, match="policy is certified for .*, given are .*; use policy and views"
                ):
                    Predictor(tiny_model(), SPEC, CLASSES, policy, views=views)


def test_one_crop_alone_is_not_said_to_add_nothing(tiny_model):
    small = np.full((12, 12, 3), 90, dtype=np.uint8)
    crop, whole_and_crop = ViewPolicy(whole=False, scales=(0.7,)), ViewPolicy(scales=(0.7,))
    assert not predictor(tiny_model(), ViewsDocument(crop, Pool("mean"))).predict([small])[0].small
    assert predictor(tiny_model(), ViewsDocument(whole_and_crop, Pool("mean"))).predict([small])[0].small


def test_views_that_do_not_fit_are_refused():
    outputs = ViewOutputs(np.zeros((1, 3, 2), np.float32), None, np.full((1, 2), 48))
    with pytest.raises(IntegrityError, match="5 views, the model was run on 3"):
        look(outputs, ViewsDocument(GRID, Pool("mean")), SPEC)
    with pytest.raises(DataError, match="aggregator is for 2 views"):
        ViewsDocument(GRID, Learned(True, (1.0, 1.0), 0.0))
