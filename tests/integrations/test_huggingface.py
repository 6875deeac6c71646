"""export --to hf of a finished run: it loads in stock transformers, gives model.onnx's logits, or does not appear."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ..command_line import stage1
from ..drawing import no_figures_drawn  # noqa: F401 (fixture)
from ..runs.conftest import SETTINGS, one_line_error, photos  # noqa: F401 (fixture)
from ..tracing import backbones_traced_once  # noqa: F401 (fixture)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from stage1.commands.export_hf import export_hf, margin_at  # noqa: E402
from stage1.config import BackboneConfig, HeadConfig, to_yaml  # noqa: E402
from stage1.config.views import ViewsConfig  # noqa: E402
from stage1.errors import ConfigError, IntegrityError, MissingError  # noqa: E402
from stage1.integrations import huggingface  # noqa: E402
from stage1.integrations.huggingface import HF_EXPORT_KIND  # noqa: E402
from stage1.model.backbone import load_backbone  # noqa: E402
from stage1.model.head import Gate, GatedHead, build_gate, build_head  # noqa: E402
from stage1.runs.directory import RunDir, read_state, stored_config  # noqa: E402
from stage1.runs.schema import FEATURES_KIND  # noqa: E402
from stage1.runtime.crops import WHOLE, ViewPolicy  # noqa: E402
from stage1.runtime.preprocessing import Preprocessing  # noqa: E402
from stage1.stages import STAGES  # noqa: E402
from stage1.storage.documents import read_document  # noqa: E402

CLIENT_VENV = os.environ.get("CLIENT_VENV")
BACKBONE = ("backbone.name=test_vit", "backbone.pooling=cls", "backbone.random_weights=true")


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):  # noqa: F811
    """A finished run on a tiny ViT."""
    folder = tmp_path_factory.mktemp("hf") / "run"
    result = stage1("run", "--recipe", "baseline", f"data.table={photos}", *SETTINGS, *BACKBONE, "-q", "-o", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def exported(run):
    folder = run.parent / "stock"
    result = stage1("export", run, "--to", "hf", folder, "--positive", "night", "--json")
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_the_folder_is_what_the_client_asks_for(exported):
    folder, facts = exported
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSES",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "stage1_export.json",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "None", "1": "Roadwork"}
    assert config["architectures"] == ["ViTForImageClassification"]
    stored = read_document(folder / "stage1_export.json", HF_EXPORT_KIND)
    assert stored == {"schema_version": 1, **facts}
    assert facts["parity"]["largest_difference"] <= 1e-4
    assert facts["parity"]["same_class"] == facts["parity"]["images"] == 8


def test_scores_are_those_of_the_run(exported, run, photos):  # noqa: F811
    """Of images that the export did not look at, by a pipeline as the client makes it."""
    from transformers import AutoModelForImageClassification, ViTImageProcessorPil, pipeline

    from stage1.inference import Predictor

    folder, _ = exported
    answer = pipeline(
        "image-classification",
        model=AutoModelForImageClassification.from_pretrained(folder),
        image_processor=ViTImageProcessorPil.from_pretrained(folder),
    )
    spec = Preprocessing.from_json(read_document(run / "features.json", FEATURES_KIND)["preprocessing"])
    paths = sorted((photos.parent / "images").iterdir())[:20]
    _, logits, _, _ = Predictor(run / "model.onnx", spec, ("day", "night")).outputs([path.read_bytes for path in paths])
    wanted = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    for path, probability in zip(paths, wanted, strict=True):
        with Image.open(path) as image:
            scores = {row["label"]: row["score"] for row in answer(image.convert("RGB"))}
        assert scores["Roadwork"] == pytest.approx(probability, abs=1e-4)


def test_threshold_lands_on_one_half(run, exported):
    """The stated probability (after the run's Platt map) is above the threshold exactly where Roadwork is above 0.5."""
    from stage1.policy import load_policy, reported
    from stage1.scores import read_role

    target = run.parent / "moved"
    export_hf(run, target, positive="night", threshold=0.8)
    scores = read_role(run, "val_test")
    probability = reported(load_policy(run), scores).probabilities[:, 1]
    shift = margin_at(run, 0.8, 2)
    assert ((probability > 0.8) == (scores.margin > shift)).all()
    facts = read_document(target / "stage1_export.json", HF_EXPORT_KIND)
    assert facts["margin_shift"] == pytest.approx(shift)
    image = [np.full((64, 64, 3), 128, dtype=np.uint8)]
    here, there = (huggingface.stock_logits(folder, image)[0] for folder in (exported[0], target))
    assert (here[1] - here[0]) - (there[1] - there[0]) == pytest.approx(shift, abs=1e-4)


def test_own_names_can_be_kept(run):
    target = run.parent / "named"
    export_hf(run, target, keep_names=True)
    assert json.loads((target / "config.json").read_text())["id2label"] == {"0": "day", "1": "night"}


def renamed(run, folder, *classes):
    """A copy of the run whose two classes have these names, in this order."""
    from stage1.data.table import SampleTable

    copy = shutil.copytree(run, folder)
    table = SampleTable.read(copy / "samples.parquet")
    dataclasses.replace(table, classes=classes).write(copy / "samples.parquet")
    return copy


def test_classes_the_other_way_round_are_refused_and_the_right_way_needs_no_word(run, tmp_path):
    turned = renamed(run, tmp_path / "turned", "roadwork", "none")
    one_line_error(stage1("export", turned, "--to", "hf", tmp_path / "x"), 2, "class 0 is roadwork", "[none,roadwork]")
    with pytest.raises(ConfigError, match="class 0 is roadwork"):
        export_hf(turned, tmp_path / "x", positive="roadwork")
    assert not (tmp_path / "x").exists()
    export_hf(turned, tmp_path / "named", keep_names=True)
    assert json.loads((tmp_path / "named" / "config.json").read_text())["id2label"] == {"0": "roadwork", "1": "none"}
    right = renamed(run, tmp_path / "right", "no roadwork", "Road works")
    export_hf(right, tmp_path / "client")
    assert json.loads((tmp_path / "client" / "config.json").read_text())["id2label"] == {"0": "None", "1": "Roadwork"}


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--to", "onnx", "x"], 2, ["onnx", "hf"]),
        (["--threshold", "0.4"], 2, ["--to hf"]),
        (["--positive", "night"], 2, ["--to hf"]),
        (["--to", "hf", "x"], 2, ["neither 'day' nor 'night'", "--positive night", "--keep-names"]),
        (["--to", "hf", "x", "--positive", "day"], 2, ["--positive day", "data.classes=[night,day]"]),
        (["--to", "hf", "x", "--positive", "night", "--keep-names"], 2, ["--positive night", "--keep-names"]),
        (["--to", "hf", "x", "--positive", "night", "--threshold", "1"], 2, ["--threshold 1"]),
        (["--to", "hf", "x", "train.epochs=2"], 2, ["overrides"]),
    ],
)
def test_bad_options_are_one_line(run, tmp_path, arguments, code, words):
    one_line_error(stage1("export", run, *arguments, cwd=tmp_path), code, *words)
    assert not (tmp_path / "x").exists()


def test_a_bundle_and_a_full_folder_are_refused(run, tmp_path):
    with pytest.raises(MissingError, match=r"ONNX graph.*the run that made it"):
        export_hf(run / "bundle", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        export_hf(run, tmp_path / "full", positive="night")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_embedded_backbone_is_refused_by_name(tmp_path):
    backbone = load_backbone(BackboneConfig(input_size=64))
    head = build_head(HeadConfig(), backbone.dim, 2, seed=0)
    nothing = huggingface.Reference([], np.zeros((0, 2), dtype=np.float32), "0" * 64)
    with pytest.raises(ConfigError, match=r"'embedded' is of class EfficientNet.*ONNX bundle"):
        huggingface.write_stock_folder(
            tmp_path / "x", backbone, head, ("a", "b"), huggingface.Answers(("a", "b")), nothing
        )
    assert list(tmp_path.iterdir()) == []


def test_other_logits_leave_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "TOLERANCE", 1e-12)
    with pytest.raises(IntegrityError, match="allowed: 1e-12"):
        export_hf(run, tmp_path / "stock", positive="night")
    assert list(tmp_path.iterdir()) == []


def looking(run, folder, aggregate="mean", **views):
    """A copy of a run as it is where its config has views: exported, and scored where `policy` says what it shipped."""
    from stage1.views import Pool, ViewsDocument

    shipped = views.pop("policy", None)
    copy = shutil.copytree(run, folder)
    config = stored_config(copy)
    config = config.model_copy(update={"views": ViewsConfig(aggregate=aggregate, **views)})
    (copy / "config.yaml").write_text(to_yaml(config))
    if shipped is not None:
        directory = RunDir(copy, config, read_state(copy))
        ViewsDocument(shipped, Pool("whole" if shipped == WHOLE else "mean")).save(copy / "views.json")
        score = next(stage for stage in STAGES if stage.name == "score")
        directory.record("score", score.inputs(directory), iter([copy / "views.json"]), 0.0)
    return copy


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({"grid": "2x2", "policy": ViewPolicy(grid=(2, 2))}, r"looks at 5 views .*; ship its ONNX bundle with .*$"),
        (
            {"whole": False, "scales": [0.7], "policy": ViewPolicy(whole=False, scales=(0.7,))},
            r"looks at 1 view \(centre .7\)",
        ),
        ({"grid": "2x2"}, r"looks at 5 views .*is open until `stage1 score"),
        ({"grid": "2x2", "train": "pooled", "aggregate": "auto"}, r"looks at 5 views .*instead$"),
    ],
)
def test_a_run_of_other_views_than_the_whole_image_is_refused(run, tmp_path, views, words):
    copy = looking(run, tmp_path / "run", **views)
    with pytest.raises(ConfigError, match=words):
        export_hf(copy, tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_a_run_whose_choice_was_the_whole_image_is_exported_while_that_stands(run, tmp_path):
    copy = looking(run, tmp_path / "run", grid="2x2", aggregate="auto", policy=WHOLE)
    assert export_hf(copy, tmp_path / "stock", positive="night")["parity"]["images"] > 0
    parity = json.loads((copy / "parity.json").read_text())
    (copy / "parity.json").write_text(json.dumps(parity))  # other bytes: the choice is of an earlier export
    with pytest.raises(ConfigError, match="is open until `stage1 score"):
        export_hf(copy, tmp_path / "again")


# ---- heads and preprocessing


def random_head(**config):
    head = build_head(HeadConfig(**config), 12, 3, seed=0)
    rng = np.random.default_rng(0)
    for member in getattr(head, "members", [head]):
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.copy_(torch.tensor(rng.normal(size=tuple(parameter.shape))))
        member.standardise(rng.normal(size=12).astype(np.float32), rng.uniform(0.5, 2, 12).astype(np.float32))
    return head.eval()


@pytest.mark.parametrize("config", [{}, {"members": 3}])
def test_linear_heads_are_folded_into_one_layer(config):
    head = random_head(**config)
    features = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    weight, bias = huggingface.linear_head(head)
    np.testing.assert_allclose(
        (features.double() @ weight.T + bias).numpy(), head(features).detach().numpy(), atol=1e-5
    )


def test_a_gate_beside_a_linear_classifier_is_left_out():
    classifier = random_head()
    gate = build_gate(HeadConfig(gate="linear"), 12 + 3 + 1, 1.0, 0.0, seed=0)
    assert isinstance(gate, Gate)
    for mine, theirs in zip(
        huggingface.linear_head(GatedHead(classifier, gate)), huggingface.linear_head(classifier), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["mlp", "selectivenet", "deepgamblers"])
def test_heads_with_a_hidden_layer_are_refused(kind):
    with pytest.raises(ConfigError, match=r"head\.kind=linear"):
        huggingface.linear_head(build_head(HeadConfig(kind=kind), 12, 2, seed=0))


def test_only_what_the_stock_processor_does_is_accepted():
    made = huggingface.stock_preprocessor(Preprocessing(size=96, interpolation="bilinear", mean=(0.1, 0.2, 0.3)))
    assert (made["size"], made["resample"], made["image_mean"]) == ({"height": 96, "width": 96}, 2, [0.1, 0.2, 0.3])
    with pytest.raises(ConfigError, match="center_crop"):
        huggingface.stock_preprocessor(Preprocessing(fit="center_crop"))


# ---- the client's own versions


THERE = """
import json, sys
from importlib.util import find_spec
from PIL import Image
import transformers
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
assert transformers.__version__ == "4.45.2", transformers.__version__
fast = {"use_fast": True} if find_spec("torchvision") else {}  # the client asks for it, and has torchvision
answer = pipeline("image-classification", model=AutoModelForImageClassification.from_pretrained(sys.argv[1]),
                  image_processor=AutoImageProcessor.from_pretrained(sys.argv[1], **fast))
found = [answer(Image.open(path).convert("RGB")) for path in sys.argv[2:]]
print(json.dumps([{row["label"]: row["score"] for row in rows} for rows in found]))
"""


@pytest.mark.slow
@pytest.mark.skipif(CLIENT_VENV is None, reason="CLIENT_VENV names no venv with transformers 4.45.2")
def test_the_clients_transformers_give_the_same_scores(photos, tmp_path):  # noqa: F811
    """Images of the client's size into a model of that size: nothing is resized, whichever processor it takes."""
    from stage1.inference import Predictor

    arguments = [f"data.table={photos}", *SETTINGS, *BACKBONE, "backbone.input_size=224", "-q", "-o", tmp_path / "run"]
    assert stage1("run", "--recipe", "baseline", *arguments).returncode == 0
    result = stage1("export", tmp_path / "run", "--to", "hf", tmp_path / "stock", "--positive", "night", "--json")
    assert result.returncode == 0, result.stderr
    client = json.loads(result.stdout)["client_processor"]
    assert client is None or client["largest_difference"] <= 1e-4
    paths = []
    for index, path in enumerate(sorted((photos.parent / "images").iterdir())[:12]):
        paths.append(tmp_path / f"{index}.jpg")
        with Image.open(path) as image:
            image.resize((224, 224)).save(paths[-1], quality=75)
    python = f"{CLIENT_VENV}/bin/python"
    there = subprocess.run(
        [python, "-c", THERE, tmp_path / "stock", *paths], capture_output=True, text=True, timeout=300
    )
    assert there.returncode == 0, there.stderr
    spec = Preprocessing.from_json(read_document(tmp_path / "run" / "features.json", FEATURES_KIND)["preprocessing"])
    predictor = Predictor(tmp_path / "run" / "model.onnx", spec, ("day", "night"))
    _, logits, _, _ = predictor.outputs([path.read_bytes for path in paths])
    for scores, pair in zip(json.loads(there.stdout.splitlines()[-1]), logits.astype(np.float64), strict=True):
        assert scores["Roadwork"] == pytest.approx(1 / (1 + np.exp(pair[0] - pair[1])), abs=1e-4)
