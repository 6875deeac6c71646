from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.config import BackboneConfig
from stage1.errors import Checkpointed, ConfigError, DataError, MissingError, Stage1Error
from stage1.model.backbone import load_backbone
from stage1.model.head import load_head
from stage1.training.checkpoint import LAST, load_checkpoint
from stage1.training.distributed import Processes
from stage1.training.image_batches import Loader
from stage1.training.image_model import ImageModel, Passes, less_memory, parameter_groups, prepare

from .image_tasks import AdapterConfig, HeadConfig, ImageTrainConfig, TrainConfig, fit, stripes, tiny

FILES = (LAST, Path("model_best.pth"), Path("metrics.csv"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(name): (folder / name).read_bytes() for name in FILES}


class StopAt:
    """True at the n-th question, counted from 1; afterwards False."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


def logits(result: Any, n: int = 8) -> np.ndarray:
    _, items, _ = stripes(n, 7)
    with Loader(items, ["x"] * n, result.backbone.preprocessing, "none", 0, 1) as loader:
        (batch,) = loader.batches([np.arange(n)], 0)
    with torch.inference_mode():
        return result.head(torch.from_numpy(result.backbone.features(batch.numpy()))).numpy()


# ---- what learns -------------------------------------------------------------------------------------------------


def test_training_through_the_backbone_learns_what_a_frozen_one_does_not_show(tmp_path):
    """Stripes upright or level: random features leave them mixed, two trained blocks or LoRA tell them apart."""
    frozen = fit(tmp_path / "frozen", n=96, epochs=6)
    last = fit(tmp_path / "last", n=96, epochs=6, images={"unfreeze": "last", "blocks": 2})
    lora = fit(tmp_path / "lora", n=96, epochs=6, adapter={"kind": "lora"})
    assert frozen.metrics["nll"] > 0.5
    assert last.metrics["nll"] < 0.1
    assert lora.metrics["nll"] < 0.1
    assert frozen.backbone.fingerprint == tiny().fingerprint
    assert not (tmp_path / "frozen" / "backbone_tuned.safetensors").exists()
    assert frozen.trainable == 64 * 2 + 2
    assert frozen.share < lora.share < last.share < 1


@pytest.mark.parametrize(
    "options",
    [
        {"images": {"unfreeze": "all"}},
        {"adapter": {"kind": "dora", "rank": 2}},
        {"adapter": {"kind": "norm"}},
        {"name": "test_efficientnet", "images": {"unfreeze": "last"}},
    ],
    ids=["all", "dora", "norm", "convnet"],
)
def test_the_files_give_the_same_model_back(options, tmp_path):
    result = fit(tmp_path, epochs=1, **options)
    stored = load_backbone(
        BackboneConfig(
            name=options.get("name", "test_vit"), weights=str(tmp_path / "backbone_tuned.safetensors"), input_size=32
        )
    )
    assert stored.fingerprint == result.backbone.fingerprint != tiny(options.get("name", "test_vit")).fingerprint
    head = load_head(tmp_path, HeadConfig(), result.backbone.dim, 2)
    np.testing.assert_array_equal(logits(replace(result, backbone=stored, head=head)), logits(result))


def test_only_what_is_named_moves(tmp_path):
    before = {name: p.clone() for name, p in tiny("test_efficientnet").module.model.state_dict().items()}
    result = fit(tmp_path, name="test_efficientnet", images={"unfreeze": "last"}, epochs=1)
    after = result.backbone.module.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    stages = max(int(name.split(".")[1]) for name in before if name.startswith("blocks."))
    assert all(name.startswith((f"blocks.{stages}.", "conv_head", "bn2")) for name in moved)
    assert not any("running" in name for name in moved)  # batch statistics stay those of pretraining


def groups_of(images: ImageTrainConfig, adapter: AdapterConfig | None = None) -> dict[str, tuple[float, float]]:
    """Parameter name -> (scale of its learning rate, weight decay)."""
    backbone = tiny()
    prepare(backbone, adapter or AdapterConfig(), images, 0)
    model = ImageModel(backbone, torch.nn.Linear(64, 2), False)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, TrainConfig(weight_decay=0.1), images)
    return {names[id(p)]: (g["scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_learning_rates_fall_towards_the_input_and_vectors_do_not_decay():
    scales = groups_of(ImageTrainConfig(unfreeze="all", learning_rate_scale=0.2, layer_decay=0.5))
    assert scales["head.weight"] == (1.0, 0.1)
    assert scales["head.bias"] == (1.0, 0.0)
    assert scales["body.model.norm.weight"] == (0.2, 0.0)
    for block in range(6):
        assert scales[f"body.model.blocks.{block}.attn.qkv.weight"] == pytest.approx((0.2 * 0.5 ** (5 - block), 0.1))
    assert scales["body.model.patch_embed.proj.weight"] == pytest.approx((0.2 * 0.5**6, 0.1))
    assert scales["body.model.cls_token"][1] == scales["body.model.pos_embed"][1] == 0.0
    lora = groups_of(
        ImageTrainConfig(learning_rate_scale=1.0, layer_decay=1.0),
        AdapterConfig(kind="lora", targets=["qkv"], blocks=2),
    )
    assert sum("lora" in name for name in lora) == 4
    assert {scale for scale, _ in lora.values()} == {1.0}


def test_adapter_and_unfrozen_layers_do_not_go_together():
    with pytest.raises(ConfigError, match="set one of them to none"):
        prepare(tiny(), AdapterConfig(kind="norm"), ImageTrainConfig(unfreeze="all"), 0)
    with pytest.raises(ConfigError, match=r"images\.blocks=7.*has 6"):
        prepare(tiny(), AdapterConfig(), ImageTrainConfig(unfreeze="last", blocks=7), 0)


# ---- a step is a step --------------------------------------------------------------------------------------------


def test_accumulation_is_the_big_batch(tmp_path):
    learn = {"unfreeze": "last"}
    one = fit(tmp_path / "one", batch_size=24, images=learn, class_weights="balanced", label_smoothing=0.1)
    four = fit(
        tmp_path / "four", batch_size=6, accumulate=4, images=learn, class_weights="balanced", label_smoothing=0.1
    )
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "four"), rtol=1e-5)
    np.testing.assert_allclose(logits(one), logits(four), atol=1e-4)


def test_checkpointing_changes_no_gradient(tmp_path):
    for name, options in (("plain", {}), ("again", {"grad_checkpointing": True})):
        fit(tmp_path / name, images={"unfreeze": "last", "blocks": 3, **options})
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "again"), rtol=1e-5)
    with pytest.raises(ConfigError, match="grad_checkpointing"):
        prepare(_without_switch(), AdapterConfig(), ImageTrainConfig(grad_checkpointing=True), 0)


def _without_switch() -> Any:
    backbone = tiny()

    def refuse(enable: bool = True) -> None:
        assert not enable, "gradient checkpointing not supported"

    backbone.module.model.set_grad_checkpointing = refuse
    return backbone


def test_memory_running_out_halves_the_batch_and_changes_the_result_by_rounding_only(tmp_path, monkeypatch):
    fit(tmp_path / "whole", images={"unfreeze": "last"})
    forward, sizes = ImageModel.forward, []

    def tight(self, images):
        sizes.append(len(images))
        made = forward(self, images)
        if len(images) > 4:  # the graph is there already: a part of the gradient must not stay behind
            made.sum().backward()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return made

    monkeypatch.setattr(ImageModel, "forward", tight)
    result = fit(tmp_path / "tight", images={"unfreeze": "last"})
    assert sizes[:5] == [12, 6, 3, 3, 3]
    assert max(sizes[3:]) == 3
    assert result.images_at_a_time == 3
    np.testing.assert_allclose(losses(tmp_path / "tight"), losses(tmp_path / "whole"), rtol=1e-5)
    assert "images_at_a_time" in (tmp_path / "tight" / "log.jsonl").read_text()


def test_not_even_one_image_fits(tmp_path, monkeypatch):
    def never(self, images):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ImageModel, "forward", never)
    with pytest.raises(Stage1Error, match=r"no memory for one image of 32 px.*grad_checkpointing"):
        fit(tmp_path)


def test_bfloat16_trains_the_body_coarsely_and_the_head_exactly(tmp_path):
    exact = fit(tmp_path / "exact", epochs=1)
    half = fit(tmp_path / "half", epochs=1, images={"precision": "bfloat16", "unfreeze": "last"})
    assert next(iter(half.head.parameters())).dtype == torch.float32
    model = ImageModel(tiny(), torch.nn.Linear(64, 2), True)
    images = torch.randn(2, 3, 32, 32)
    plain = ImageModel(tiny(), model.head, False)
    assert model.features(images).dtype == torch.float32
    assert 0 < float((model.features(images) - plain.features(images)).abs().max()) < 0.2
    assert np.isfinite([exact.metrics["nll"], half.metrics["nll"]]).all()


def test_bfloat16_with_activations_computed_again(tmp_path):
    """Float32 attention of the forward pass alone is an error of torch's checkpoint: it restores autocast only."""
    losses = [
        fit(
            tmp_path / str(again),
            epochs=1,
            images={"precision": "bfloat16", "unfreeze": "all", "grad_checkpointing": again},
        ).metrics["train_loss"]
        for again in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_the_layout_in_memory_changes_features_by_rounding_only(name):
    backbone = tiny(name)
    model = ImageModel(backbone, torch.nn.Linear(backbone.dim, 2), False)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.features(images), backbone.module(images), atol=1e-5, rtol=1e-5)
    # What is trained and stored keeps its own layout: a checkpoint resumes on the same bits.
    assert all(parameter.is_contiguous() for parameter in model.parameters())


# ---- resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"images": {"unfreeze": "last", "augment": "aggressive", "workers": 2}, "head": {"kind": "mlp", "hidden": 8}},
        {"adapter": {"kind": "lora", "dropout": 0.2}, "images": {"augment": "moderate"}},
        {"name": "test_efficientnet", "images": {"unfreeze": "last", "augment": "client"}},
    ],
    ids=["last", "lora", "convnet"],
)
def test_a_stop_before_any_step_changes_no_bit(options, tmp_path):
    options = {"n": 20, "batch_size": 5, "accumulate": 2, **options}  # two steps an epoch
    whole = fit(tmp_path / "whole", **options)
    for at in range(1, 5):
        folder = tmp_path / f"stopped{at}"
        with pytest.raises(Checkpointed, match="run the same command"):
            fit(folder, stop=StopAt(at), **options)
        resumed = fit(folder, **options)
        assert contents(folder) == contents(tmp_path / "whole")
        assert (folder / "backbone_tuned.safetensors").read_bytes() == (
            tmp_path / "whole" / "backbone_tuned.safetensors"
        ).read_bytes()
        assert resumed.backbone.fingerprint == whole.backbone.fingerprint
        assert resumed.metrics == whole.metrics


def test_a_finished_run_answers_at_once(tmp_path):
    first = fit(tmp_path, images={"unfreeze": "last"})
    before = contents(tmp_path)

    def never() -> bool:
        raise AssertionError("a finished run has no step to take")

    again = fit(tmp_path, images={"unfreeze": "last"}, stop=never)
    assert contents(tmp_path) == before
    np.testing.assert_array_equal(logits(again), logits(first))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(tmp_path, epochs=1, n=24)
    for options, message in (
        ({"images": {"augment": "moderate"}}, r"images\.augment|augment"),
        ({"adapter": {"kind": "bias"}}, "adapter.kind"),
        ({"name": "test_vit2"}, "backbone"),
        ({"train": stripes(24, 5)}, "other features or labels"),
        # the same ids and labels, and other pictures under them
        ({"train": (stripes(24, 0)[0], stripes(24, 5)[1], stripes(24, 0)[2])}, "other features or labels"),
        ({"head": {"kind": "mlp"}}, "head.kind"),
    ):
        with pytest.raises(ConfigError, match=message):
            fit(tmp_path, **{"epochs": 1, "n": 24, **options})
    fit(tmp_path, epochs=1, n=24, images={"augment": "moderate"}, fresh=True)
    fit(tmp_path, epochs=1, n=24, images={"augment": "moderate", "workers": 2})  # how it is decoded changes nothing


def test_average_is_what_the_file_holds_where_it_is_better(tmp_path):
    result = fit(tmp_path, epochs=4, ema_decay=0.5, images={"unfreeze": "last"}, learning_rate=0.02)
    stored = load_checkpoint(tmp_path / LAST)
    assert stored is not None
    best, facts = stored[1]["best"], stored[0]
    assert result.used_ema == best["ema"]
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    columns = [float(row[name]) for row in rows for name in ("select_nll", "ema_nll")]
    assert result.metrics["nll"] == min(columns)
    frozen = "best.body.model.blocks.0.attn.qkv.weight"
    assert frozen not in facts  # a checkpoint holds what is trained and no more


# ---- bad input ---------------------------------------------------------------------------------------------------


def test_loss_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    plain = Passes.gradients

    def poisoned(self, images, labels, weight, place):
        made = plain(self, images, labels, weight, place)
        return float("nan") if place == (1, 1) else made

    monkeypatch.setattr(Passes, "gradients", poisoned)
    with pytest.raises(
        Stage1Error, match=r"loss nan.*at step 6 \(epoch 2\).*last good checkpoint is .*last\.safetensors"
    ):
        fit(tmp_path, images={"unfreeze": "last"})
    stored = load_checkpoint(tmp_path / LAST)
    assert stored is not None
    assert stored[1]["position"]["epoch"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in stored[0].values())
    monkeypatch.setattr(Passes, "gradients", plain)
    fit(tmp_path, images={"unfreeze": "last"})  # goes on from there


def test_a_learning_rate_out_of_bounds_diverges_by_name(tmp_path):
    with pytest.raises(Stage1Error, match=r"at step \d+ .*lower train\.learning_rate \(1e\+30\).*learning_rate_scale"):
        fit(tmp_path, images={"unfreeze": "all"}, learning_rate=1e30, clip_norm=None, epochs=3)


@pytest.mark.parametrize("name", ["test_vit", "convnext_atto"])  # the switch of a ConvNet stands in its stages
def test_gradient_checkpointing_is_off_in_the_backbone_that_comes_back(name, tmp_path):
    result = fit(tmp_path, name=name, n=24, epochs=1, images={"unfreeze": "last", "grad_checkpointing": True})
    on = [
        path for path, module in result.backbone.module.named_modules() if getattr(module, "grad_checkpointing", False)
    ]
    assert on == []


def test_a_model_without_a_grouping_of_its_layers_trains_by_the_advice_of_no_error(tmp_path):
    """MetaFormer: unfreeze=last said "use all", and all ended in the same error."""
    for unfreeze in ("last", "all"):
        result = fit(
            tmp_path / unfreeze,
            name="poolformerv2_s12",
            n=16,
            batch_size=8,
            epochs=1,
            images={"unfreeze": unfreeze, "layer_decay": 0.75},
        )
        assert result.epochs_run == 1


def test_what_takes_less_memory_is_only_what_the_model_can_take():
    vit, none = tiny(), AdapterConfig()
    assert (
        less_memory(vit, none, ImageTrainConfig(unfreeze="all"))
        == "set images.grad_checkpointing=true or set images.unfreeze=last or lower backbone.input_size (32)"
    )
    settings = ImageTrainConfig(unfreeze="last", blocks=2, grad_checkpointing=True)
    assert less_memory(vit, none, settings) == "lower images.blocks (2) or lower backbone.input_size (32)"
    vgg = tiny("vgg11")  # has the switch and refuses it
    assert less_memory(vgg, none, ImageTrainConfig(unfreeze="last")) == "lower backbone.input_size (32)"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n": 8}, r"8 images, fewer than the 12 of one step.*lower train\.batch_size to 8 or add"),
        ({"n": 3, "accumulate": 4}, r"set train\.accumulate=1 and lower train\.batch_size to 3"),
        ({"train": (*stripes(24, 0)[:2], np.zeros(24, np.int64))}, "all 24 images are of class 0"),
        ({"train": (["a"], *stripes(24, 0)[1:])}, "1 ids and 24 images"),
        ({"select": ([], [], np.zeros(0, np.int64))}, "val_select: no images"),
    ],
)
def test_data_that_cannot_be_trained_on(options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        fit(tmp_path, **options)


def test_heads_and_objectives_that_need_cached_features(tmp_path):
    with pytest.raises(ConfigError, match="features of the tuned backbone"):
        fit(tmp_path, head={"kind": "selectivenet"})
    with pytest.raises(ConfigError, match="features of the tuned backbone"):
        fit(tmp_path, entropy=0.1)


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(MissingError, match=r"'cuda:7': not there"):
        fit(tmp_path, images={"device": "cuda:7"})
    with pytest.raises(ConfigError, match="no such kind of device"):
        fit(tmp_path, images={"device": "abacus"})


def test_an_image_that_became_unreadable_is_named(tmp_path):
    ids, items, labels = stripes(24, 0)
    items[5] = items[5][:60]
    with pytest.raises(Stage1Error, match=r"0-0005: could be read at the split and cannot now"):
        fit(tmp_path, train=(ids, items, labels))


# ---- the stream of images ----------------------------------------------------------------------------------------


def test_images_come_in_the_order_of_the_plan_whatever_the_threads():
    ids, items, _ = stripes(11, 0)
    spec = tiny().preprocessing
    plan = [np.array([3, 1]), np.array([], dtype=np.int64), np.array([10, 0, 2]), np.array([4])]
    made = []
    for workers in (1, 3):
        with Loader(items, ids, spec, "aggressive", 5, workers) as loader:
            made.append([batch.numpy() for batch in loader.batches(plan, 2)])
            assert 0 <= loader.waiting_share <= 1
    assert [len(batch) for batch in made[0]] == [2, 0, 3, 1]
    for one, three in zip(*made, strict=True):
        np.testing.assert_array_equal(one, three)
    with Loader(items, ids, spec, "aggressive", 5, 1) as loader:
        (alone,) = loader.batches([np.array([2])], 2)
        (other,) = loader.batches([np.array([2])], 3)
    np.testing.assert_array_equal(alone[0], made[0][2][2])  # an image does not depend on its neighbours
    assert not np.array_equal(alone[0], other[0])


def test_the_log_says_what_was_done(tmp_path):
    fit(tmp_path, images={"unfreeze": "last"})
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "done"]
    assert events[0]["processes"] == 1
    assert 0 < events[0]["trainable"] < events[0]["parameters"]
    assert 0 <= events[1]["waiting_share"] <= 1


def test_shares_of_processes_are_disjoint_and_whole():
    rows = np.random.default_rng(0).permutation(23)
    for world in (1, 2, 3, 5):
        parts = [Processes(rank, world).share(rows) for rank in range(world)]
        assert sorted(np.concatenate(parts)) == list(range(23))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
