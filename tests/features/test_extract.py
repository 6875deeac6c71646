"""Extraction with a tiny backbone: both engines, failures by id, the choice between engines, resume."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnxscript")
from PIL import Image  # noqa: E402

from stage1.config import BackboneConfig, FeaturesConfig  # noqa: E402
from stage1.errors import DataError, MissingError  # noqa: E402
from stage1.features import FeatureKey, FeatureStore, extract  # noqa: E402
from stage1.features.extract import extract_features  # noqa: E402
from stage1.model.backbone import load_backbone  # noqa: E402
from stage1.model.export import export_backbone  # noqa: E402
from stage1.runtime.crops import ViewPolicy, cut  # noqa: E402
from stage1.runtime.images import ImageError, decode  # noqa: E402
from stage1.runtime.preprocessing import load_tensor  # noqa: E402

CONFIG = FeaturesConfig(shard_size=8, max_batch_size=4)


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def identify(items: list[bytes]) -> list[str]:
    return [hashlib.sha256(item).hexdigest() for item in items]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.onnx"
    backbone = load_backbone(BackboneConfig(name="test_efficientnet", random_weights=True, input_size=64), seed=0)
    export_backbone(backbone, path)
    return backbone, path


@pytest.fixture(scope="module")
def items() -> list[bytes]:
    return [picture(seed) for seed in range(21)]


def run(made, folder, items, **options):
    return extract_features(identify(items), items, *made, FeatureStore(folder), CONFIG, **options)


def test_both_engines_give_the_features_of_the_backbone(made, items, tmp_path):
    backbone, _ = made
    batch = np.stack([load_tensor(item, backbone.preprocessing) for item in items])
    expected = backbone.features(batch)
    for engine in ("onnx", "torch"):
        result = run(made, tmp_path, items, engine=engine)
        assert result.engine == engine
        assert result.failed == []
        assert result.rows.tolist() == list(range(21))
        np.testing.assert_allclose(result.features, expected, atol=1e-4 * np.abs(expected).max())
    assert run(made, tmp_path, items, engine="onnx").key != run(made, tmp_path, items, engine="torch").key


def test_failures_are_named_by_id_and_have_no_row(made, items, tmp_path):
    mixed = [*items[:5], b"no image", *items[5:9], b"", tmp_path / "gone.jpg"]
    ids = [*identify(mixed[:-1]), "f" * 64]
    result = extract_features(ids, mixed, *made, FeatureStore(tmp_path), CONFIG, engine="onnx")
    assert [name for name, _ in result.failed] == [ids[5], ids[10], ids[11]]
    assert [type(error) for _, error in result.failed] == [ImageError, ImageError, FileNotFoundError]
    assert result.rows.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    whole = run(made, tmp_path / "whole", items, engine="onnx")
    np.testing.assert_array_equal(result.features, whole.features[:9])


def test_nothing_readable_is_an_error(made, tmp_path):
    with pytest.raises(DataError, match="none of 2 images"):
        run(made, tmp_path, [b"a", b"b"], engine="onnx")
    with pytest.raises(DataError, match="none of 2 images"):
        run(made, tmp_path, [b"a", b"b"])
    with pytest.raises(MissingError, match="no such model file"):
        extract_features(["a"], [b""], made[0], tmp_path / "gone.onnx", FeatureStore(tmp_path), CONFIG)


@pytest.mark.parametrize("faster", ["onnx", "torch"])
def test_auto_takes_the_faster_one_and_says_so(made, items, tmp_path, monkeypatch, caplog, faster):
    caplog.set_level(logging.INFO, "stage1")

    def rate(runner, batch, parallel):
        assert len(batch) == CONFIG.max_batch_size
        return 100.0 if (runner is made[0]) == (faster == "torch") else 50.0

    monkeypatch.setattr(extract, "_images_per_second", rate)
    assert run(made, tmp_path, items).engine == faster
    assert f"features.engine=auto: {faster} (images/s" in caplog.text


def test_auto_measures_for_real(made, items, tmp_path):
    assert run(made, tmp_path, items[:6]).engine in ("onnx", "torch")


def test_auto_goes_on_with_the_engine_that_began(made, items, tmp_path, monkeypatch):
    first = run(made, tmp_path, items[:10], engine="torch")
    monkeypatch.setattr(extract, "_images_per_second", lambda *_: pytest.fail("measured although some are stored"))
    again = run(made, tmp_path, items)
    assert again.engine == "torch"
    np.testing.assert_array_equal(again.features[:10], first.features)


def test_stored_features_cost_no_decoding(made, items, tmp_path):
    first = run(made, tmp_path, items, engine="onnx")

    def unread():
        raise AssertionError("read although stored")

    again = extract_features(identify(items), [unread] * 21, *made, FeatureStore(tmp_path), CONFIG, engine="onnx")
    np.testing.assert_array_equal(again.features, first.features)


def test_an_interrupted_run_ends_bit_equal(made, items, tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.done >= 12:
            raise Stop

    whole = run(made, tmp_path / "whole", items, engine="onnx")
    with pytest.raises(Stop):
        run(made, tmp_path / "cut", items, engine="onnx", progress=stop)
    assert 8 <= FeatureStore(tmp_path / "cut").has(identify(items), whole.key).sum() < 21
    run(made, tmp_path / "cut", items, engine="onnx")
    for path in (tmp_path / "whole").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_progress_tells_rate_and_waiting(made, items, tmp_path):
    seen = []
    run(made, tmp_path, items, engine="onnx", progress=seen.append)
    assert (seen[-1].done, seen[-1].total) == (21, 21)
    assert seen[-1].images_per_second > 0
    assert 0 <= seen[-1].waiting_share <= 1


def test_another_preprocessing_or_backbone_never_hits(made, items, tmp_path):
    first = run(made, tmp_path, items[:4], engine="torch")
    other = load_backbone(BackboneConfig(name="test_efficientnet", random_weights=True, input_size=96), seed=0)
    second = extract_features(
        identify(items[:4]), items[:4], other, made[1], FeatureStore(tmp_path), CONFIG, engine="torch"
    )
    assert second.key.backbone != first.key.backbone
    assert second.key.preprocessing != first.key.preprocessing
    assert not np.array_equal(first.features, second.features)


# ---- views -------------------------------------------------------------------------------------------------------


def test_features_of_views_stand_under_a_key_of_their_own(made, items, tmp_path):
    backbone, _ = made
    views = ViewPolicy(grid=(2, 2))
    whole = run(made, tmp_path, items, engine="onnx")
    viewed = run(made, tmp_path, items, engine="onnx", views=views)
    assert viewed.features.shape == (len(items), 5, backbone.dim)
    expected = np.stack([backbone.features(cut(decode(item), views, backbone.preprocessing)) for item in items])
    assert np.allclose(viewed.features, expected, atol=1e-4)
    assert np.allclose(viewed.features[:, 0], whole.features, atol=1e-5)
    other = run(made, tmp_path, items, engine="onnx", views=ViewPolicy(grid=(2, 2), overlap=0.3))
    assert len({whole.key.digest, viewed.key.digest, other.key.digest}) == 3
    assert not np.allclose(other.features[:, 1], viewed.features[:, 1])


def test_features_of_views_are_made_once(made, items, tmp_path):
    options = {"engine": "onnx", "views": ViewPolicy(scales=(0.5,))}
    first = run(made, tmp_path, items[:12], **options)
    states = []
    again = run(made, tmp_path, items, progress=states.append, **options)
    assert states[-1].total == len(items) - 12
    assert (again.features[:12] == first.features).all()


def test_a_key_without_views_is_what_it_was_before_there_were_any():
    key = FeatureKey("p", "b", "pool", "float32", "torch:cpu")
    fields = {"preprocessing": "p", "backbone": "b", "pooling": "pool", "dtype": "float32", "engine": "torch:cpu"}
    assert key.to_json() == fields
    assert key.digest == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    assert FeatureKey(**replace(key, views="v").to_json()) == replace(key, views="v")
