"""One path from image to answer: files, bytes, arrays and pictures agree, and what is broken is named."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.inference import Predictor, load_bundle
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores

CLASSES = ("none", "roadwork")
SPEC = Preprocessing(size=16)


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


def photo(seed: int, size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> bytes:
    """Noise around a random colour."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.integers(40, 215, 3) + rng.normal(0, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


# ---- answers -----------------------------------------------------------------------------------------------------


def test_decisions_are_those_of_the_policy(bundle):
    images = [photo(seed) for seed in range(100)]
    rows = bundle.predict(images)
    read, logits, failures = bundle.predictor.logits(images)
    decision = bundle.policy.decide(Scores(logits=logits.astype(np.float64)))
    assert read.tolist() == list(range(100))
    assert failures == []
    assert [row.exit for row in rows] == decision.exit.tolist()
    assert [row.label for row in rows] == [CLASSES[label] for label in decision.label]
    assert [row.probability for row in rows] == decision.probability.tolist()
    # P(class 1) whatever the label; the confidence is of the label that is printed.
    assert [row.probabilities for row in rows] == [(1.0 - p, p) for p in decision.probability.tolist()]
    assert [row.confidence for row in rows] == [row.probabilities[CLASSES.index(row.label)] for row in rows]
    assert {row.label for row in rows if row.confidence != row.probability} == {"none"}
    assert {row.decision for row in rows} == {"exit:none", "exit:roadwork", "defer"}
    for row in rows:
        assert row.decision == (f"exit:{row.label}" if row.exit else "defer")
        assert row.error is None


def test_logits_are_what_the_model_says(bundle, picture):
    _, logits, _ = bundle.predictor.logits([picture((200, 60, 60), kind="PNG")])
    # the tiny model: 6 x (mean red - mean blue), each scaled from [0, 255] to [-1, 1]
    assert logits == pytest.approx(np.array([[0.0, 6 * 2 * (200 - 60) / 255]]), abs=1e-4)


def test_one_decoded_image_is_answered_as_its_file_is(bundle):
    images = [photo(seed) for seed in range(40)]
    alone = [bundle.predictor.answer(decode(data), f"#{index}") for index, data in enumerate(images)]
    assert alone == bundle.predict(images)
    assert 0 < sum(row.exit for row in alone) < len(alone)
    with pytest.raises(DataError, match="uint8 of shape"):
        bundle.predictor.answer(np.zeros((8, 8), np.uint8))


def test_files_bytes_arrays_and_pictures_agree(bundle, tmp_path):
    data = photo(3)
    path = tmp_path / "ä photo.jpg"
    path.write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        array = np.asarray(image.convert("RGB"))
    rows = bundle.predict([path, str(path), data, array, Image.open(path), Image.fromarray(array), lambda: data])
    assert len({(row.label, row.probability, row.decision) for row in rows}) == 1
    assert [row.path for row in rows] == [str(path), str(path), "#2", "#3", "#4", "#5", "#6"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pictures_of_every_mode_are_read_as_their_files_are(bundle, mode):
    image = Image.open(io.BytesIO(photo(5, kind="PNG"))).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    memory, file = bundle.predict([image, buffer.getvalue()])
    assert memory.error is None
    assert memory.probability == pytest.approx(file.probability, abs=0.01 if kind == "JPEG" else 0)


def test_orientation_of_a_picture_counts(bundle):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :20] = (255, 0, 0)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = Image.open(io.BytesIO(buffer.getvalue()))
    crop = Predictor(bundle.folder / "model.onnx", Preprocessing(size=16, fit="center_crop"), CLASSES)
    memory, file, upright = crop.predict([turned, buffer.getvalue(), decode(buffer.getvalue())])
    assert memory.probability == file.probability == upright.probability


def test_without_a_policy_everything_defers(bundle, picture):
    bare = Predictor(bundle.folder / "model.onnx", SPEC, CLASSES)
    rows = bare.predict([picture((200, 60, 60)), picture((60, 60, 200))])
    assert [(row.label, row.exit, row.decision) for row in rows] == [
        ("roadwork", False, "defer"),
        ("none", False, "defer"),
    ]
    assert rows[0].probability > 0.9 > 0.1 > rows[1].probability  # P(class 1), whatever the label


def test_what_is_not_certified_defers(refusing_folder, picture):
    bundle = load_bundle(refusing_folder)
    assert not bundle.certificate.certified
    assert (bundle.policy.lo, bundle.policy.hi) == (None, None)
    rows = bundle.predict([picture((255, 0, 0)), picture((0, 0, 255))])
    assert [(row.label, row.decision) for row in rows] == [("roadwork", "defer"), ("none", "defer")]


def test_three_classes_without_a_policy(tiny_model):
    predictor = Predictor(tiny_model(outputs=3), SPEC, ("a", "b", "c"))
    (row,) = predictor.predict([photo(1)])
    assert row.label in ("a", "b", "c")
    assert 1 / 3 <= row.probability <= 1
    assert row.confidence == row.probability == max(row.probabilities)
    assert len(row.probabilities) == 3
    assert sum(row.probabilities) == pytest.approx(1)


# ---- odd input ---------------------------------------------------------------------------------------------------


def test_broken_images_are_named_in_place_and_the_rest_answered(bundle, picture, tmp_path):
    good = picture((200, 60, 60))
    broken = [b"", b"<svg></svg>", good[:100], b"\0" * 500, tmp_path / "missing.jpg", tmp_path]
    images = [good, *broken, good, Image.new("F", (4, 4)), good]
    rows = bundle.predict(images)
    assert [row.error is None for row in rows] == [True, *[False] * 6, True, False, True]
    for row in rows:
        if row.error is not None:
            assert (row.label, row.probability, row.exit, row.decision) == (None, None, False, "defer")
            assert "\n" not in row.error
    assert rows[5].path == str(tmp_path / "missing.jpg")
    assert rows[5].error == "No such file or directory"
    assert rows[1].error.startswith("empty: ")


def test_order_holds_over_many_batches_with_failures_between(bundle_folder, picture):
    bundle = load_bundle(bundle_folder, batch_size=4, workers=3)
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 150)
    images = [[picture((200, 60, 60)), picture((60, 60, 200)), b"broken"][kind] for kind in kinds]
    labels = [row.label for row in bundle.predict(images)]
    assert labels == [["roadwork", "none", None][kind] for kind in kinds]
    read, _, failures = bundle.predictor.logits(images)
    assert read.tolist() == np.flatnonzero(kinds < 2).tolist()
    assert [row for row, _ in failures] == np.flatnonzero(kinds == 2).tolist()


def test_no_images(bundle):
    assert bundle.predict([]) == []
    read, logits, failures = bundle.predictor.logits([])
    assert (read.shape, logits.shape, failures) == ((0,), (0, 2), [])


def test_only_broken_images(bundle):
    assert [row.decision for row in bundle.predict([b"x", b"y"])] == ["defer", "defer"]
    assert bundle.predictor.logits([b"x"])[1].shape == (0, 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("fit", ["squash", "center_crop"])
def test_extreme_shapes(bundle, picture, size, fit):
    predictor = Predictor(bundle.folder / "model.onnx", Preprocessing(size=16, fit=fit), CLASSES, bundle.policy)
    (row,) = predictor.predict([picture((200, 60, 60), size=size, kind="PNG")])
    assert (row.error, row.decision) == (None, "exit:roadwork")


def test_too_many_pixels_are_refused_from_memory_too(bundle):
    predictor = Predictor(bundle.folder / "model.onnx", Preprocessing(size=16, max_pixels=99), CLASSES)
    rows = predictor.predict([np.zeros((10, 10, 3), dtype=np.uint8), np.zeros((9, 11, 3), dtype=np.uint8)])
    assert rows[0].error.startswith("too large: ")
    assert rows[1].error is None


def test_a_picture_with_a_broken_file_behind_it_is_named(bundle, picture):
    lazy = Image.open(io.BytesIO(picture((200, 60, 60), size=(300, 300))[:-900]))
    assert bundle.predict([lazy])[0].error.startswith("truncated: ")


def test_an_image_for_which_the_model_gives_nan_is_named(tiny_model, picture):
    predictor = Predictor(tiny_model(scale=float("inf")), SPEC, CLASSES)
    grey, red = predictor.predict([np.full((16, 16, 3), 0, np.uint8), b"broken"])
    assert "NaN or infinity" in grey.error
    assert red.error.startswith("not an image")


@pytest.mark.parametrize(
    "images, message",
    [
        ("photo.jpg", "give a list of images"),
        (Path("photo.jpg"), "give a list of images"),
        (b"bytes", "give a list of images"),
        ([np.zeros((4, 4), np.uint8)], r"images\[0\]: uint8 of shape \(4, 4\)"),
        ([b"x", np.zeros((4, 4, 3), np.float32)], r"images\[1\]: float32"),
        ([np.zeros((0, 4, 3), np.uint8)], r"shape \(0, 4, 3\)"),
        ([None], r"images\[0\]: NoneType"),
    ],
)
def test_what_is_no_image_at_all_is_a_mistake_of_the_caller(bundle, images, message):
    with pytest.raises(DataError, match=message):
        bundle.predict(images)


def test_a_stack_of_arrays_is_a_list_of_images(bundle):
    assert len(bundle.predict(np.zeros((3, 8, 8, 3), dtype=np.uint8))) == 3


# ---- opening -----------------------------------------------------------------------------------------------------


def test_bundle_says_what_it_is(bundle, bundle_folder):
    assert bundle.classes == CLASSES
    assert len(bundle.digest) == 64
    assert bundle.certificate.certified
    assert bundle.about == {
        "name": "tiny demo",
        "digest": bundle.digest,
        "policy": "softmax",
        "certified": True,
        "classes": list(CLASSES),
    }
    assert bundle.folder == bundle_folder


def test_a_damaged_bundle_is_not_opened(bundle_folder, tmp_path, picture):
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    (folder / "README.md").write_text("edited")
    with pytest.raises(IntegrityError, match="README.md"):
        load_bundle(folder)
    assert load_bundle(folder, verify=False).predict([picture()])[0].exit
    shutil.copy(folder / "thresholds.json", folder / "gateparams.json")
    for verify in (True, False):
        with pytest.raises(IntegrityError, match="gateparams.json"):
            load_bundle(folder, verify=verify)


@pytest.mark.parametrize(
    "name", ["model.onnx", "calibration.parquet", "certificate.json", "thresholds.json", "README.md"]
)
def test_a_changed_byte_of_any_file_is_refused(bundle_folder, tmp_path, name):
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{path.name}: changed"):
        load_bundle(folder)


def test_another_model_is_noticed_even_unverified(bundle_folder, tmp_path, tiny_model):
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    (folder / "model.onnx").write_bytes(tiny_model(scale=60.0))
    with pytest.raises(IntegrityError, match="not the one that was certified"):
        load_bundle(folder, verify=False)


def test_no_bundle_there(tmp_path):
    with pytest.raises(MissingError, match="no such bundle folder"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="not a bundle"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("model, message", [("scores", "no output `logits`"), ("logits", "takes 16")])
def test_a_model_that_does_not_fit_is_refused(tiny_model, model, message):
    with pytest.raises((IntegrityError, DataError), match=message):
        Predictor(tiny_model(name=model), Preprocessing(size=32), CLASSES)


def test_wrong_number_of_classes_is_refused(tiny_model):
    with pytest.raises(IntegrityError, match=r"logits \[1, 3\] for 1 images, 2 classes"):
        Predictor(tiny_model(outputs=3), SPEC, CLASSES).predict([photo(0)])


_WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "sklearn", "pandas", "matplotlib", "jinja2", "onnx"}:
            raise ImportError(f"blocked: {name}")
sys.meta_path.insert(0, Block())
from stage1.bundle import verify_bundle
from stage1.inference import load_bundle
assert verify_bundle(sys.argv[1], recompute=True).ok
print(load_bundle(sys.argv[1]).predict([sys.argv[2]])[0].decision)
assert not {"torch", "timm", "pandas"} & set(sys.modules)
"""


def test_core_answers_without_torch(bundle_folder, photos):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, str(bundle_folder), str(photos / "1 red.jpg")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "exit:roadwork"
