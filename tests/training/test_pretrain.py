from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from stage1.config import BackboneConfig, PretrainConfig
from stage1.data.table import SampleTable
from stage1.errors import Checkpointed, ConfigError, DataError, MissingError, Stage1Error
from stage1.model.backbone import Backbone, load_backbone
from stage1.storage.files import digest_bytes
from stage1.training.checkpoint import load_checkpoint
from stage1.training.image_batches import Loader
from stage1.training.pretrain.adapter import RowUpdate, merge_explora, prepare_explora
from stage1.training.pretrain.collapse import Vitals, collapse, effective_rank, spread
from stage1.training.pretrain.dino import DinoObjective, dino_loss, momentum_at
from stage1.training.pretrain.masked import (
    MaskedObjective,
    encode_visible,
    hidden_pixels,
    masked_loss,
    patchify,
    sine_positions,
    visible_patches,
)
from stage1.training.pretrain.run import CHECKPOINT, PretrainResult, PretrainRun, pretrain
from stage1.training.pretrain.unlabelled import (
    Prints,
    overlapping,
    printed,
    protected_images,
    refuse_overlap,
    unlabelled_images,
)

from .image_tasks import stripes

SIDE = 64  # 16 patches
NAMES = ("test_vit", "vit_small_patch16_dinov3")


def vit(name: str = "test_vit", seed: int = 0, **fields: Any) -> Backbone:
    config = BackboneConfig(name=name, random_weights=True, **{"input_size": SIDE, **fields})
    return load_backbone(config, seed=seed)


def small(name: str) -> Backbone:
    """As `vit`, with two blocks."""
    backbone = vit(name)
    backbone.module.model.blocks = backbone.module.model.blocks[:2]
    return backbone


def unlabelled(n: int = 24, seed: int = 0) -> Prints:
    ids, items, _ = stripes(n, seed, SIDE)
    return printed(items, ids)


def images(n: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32))


def settings(**fields: Any) -> PretrainConfig:
    values = {
        "epochs": 2,
        "batch_size": 8,
        "rank": 4,
        "decoder_width": 32,
        "decoder_depth": 1,
        "prototypes": 16,
        "threads": 1,
        "workers": 1,
        "learning_rate": 1e-3,
    }
    return PretrainConfig(**{**values, **fields})


def run(
    folder: Path, n: int = 24, name: str = "test_vit", stop: Any = None, progress: Any = None, **fields: Any
) -> PretrainResult:
    fresh = fields.pop("fresh", False)
    return pretrain(
        vit(name),
        unlabelled(n),
        config=settings(**fields),
        seed=5,
        folder=folder,
        stop=stop,
        progress=progress,
        fresh=fresh,
    )


# ---- what learns -------------------------------------------------------------------------------------------------


def test_last_block_and_norms_whole_queries_and_values_elsewhere():
    backbone = vit()
    before = backbone.features(images().numpy())
    names = prepare_explora(backbone, settings(unfreeze=1), seed=0)
    assert names == [f"blocks.{i}.attn.qkv" for i in range(5)]
    np.testing.assert_allclose(backbone.features(images().numpy()), before, atol=1e-5)
    learns = {name for name, p in backbone.module.model.named_parameters() if p.requires_grad}
    plain = timm.create_model("test_vit", num_classes=0)
    for name, _ in plain.named_parameters():
        expected = name.startswith("blocks.5.") or "norm" in name
        stored = name.replace("qkv.weight", "qkv.parametrizations.weight.original") if name[:8] != "blocks.5" else name
        assert (stored in learns) == expected, name
    assert sum(".0.a." in name or ".0.b." in name for name in learns) == 5 * 4


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_untouched_queries_and_values_are_not(name):
    """The rows of k in the fused matrix keep their bits through training and merge; those of q and v move."""
    backbone = small(name)
    for gamma in [p for n, p in backbone.module.model.named_parameters() if "gamma" in n]:
        gamma.data.fill_(1.0)  # layer scale starts at 1e-5: an untrained block would get no gradient worth the name
    layer = backbone.module.model.blocks[0].attn.qkv
    before = layer.weight.detach().clone()
    prepare_explora(backbone, settings(unfreeze=1), seed=0)
    parameters = [p for p in backbone.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        backbone.module(images()).square().mean().backward()
        optimizer.step()
    gradient = torch.autograd.grad(backbone.module(images()).square().mean(), parameters, allow_unused=True)
    assert all(g is not None and torch.isfinite(g).all() for g in gradient)
    after = backbone.features(images().numpy())
    merged = merge_explora(backbone)
    np.testing.assert_allclose(merged.features(images().numpy()), after, atol=1e-4)
    weight = merged.module.model.blocks[0].attn.qkv.weight
    third = len(weight) // 3
    assert torch.equal(weight[third : 2 * third], before[third : 2 * third])
    for part in (slice(0, third), slice(2 * third, 3 * third)):
        assert float((weight[part] - before[part]).abs().max()) > 1e-4
    assert type(merged.module.model.blocks[0].attn.qkv) is torch.nn.Linear


def test_an_update_is_its_formula_of_rank_r():
    generator = torch.Generator().manual_seed(0)
    update = RowUpdate(10, [(0, 6), (12, 18)], 2, 0.5, generator)
    weight = torch.randn(18, 10)
    assert torch.equal(update(weight), weight)
    with torch.no_grad():
        for b in update.b:
            b.normal_()
    change = update(weight) - weight
    assert torch.equal(change[6:12], torch.zeros(6, 10))
    torch.testing.assert_close(change[12:], 0.5 * update.b[1] @ update.a[1])
    assert int(torch.linalg.matrix_rank(change[:6])) == 2


def test_convnets_and_overlapping_patches_are_refused_with_a_reason(tmp_path):
    with pytest.raises(
        ConfigError, match=r"test_efficientnet is no plain ViT \(a ConvNet\?\).*no patches.*unfreeze=last"
    ):
        run(tmp_path, name="test_efficientnet")
    with pytest.raises(ConfigError, match=r"pretrain\.unfreeze=7: test_vit has 6 blocks"):
        run(tmp_path, unfreeze=7)
    backbone = vit()
    backbone.module.model.patch_embed.proj.stride = (8, 8)
    with pytest.raises(ConfigError, match="overlap"):
        prepare_explora(backbone, settings(), seed=0)


# ---- masked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_masked_pixels_cannot_influence_the_encoder(name):
    """Nothing in a hidden patch reaches the encoder: not a bit of its tokens changes, and no gradient goes back."""
    model = small(name).module.model
    keep = visible_patches(3, 16, 0.75, seed=1)
    pixels = images().requires_grad_(True)
    tokens = encode_visible(model, pixels, keep)
    assert tokens.shape[1] == model.num_prefix_tokens + 4
    seen = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, keep, True)
    (gradient,) = torch.autograd.grad(tokens.square().sum(), pixels)
    moved = patchify(gradient, 16).abs().sum(dim=2)
    assert torch.equal(moved > 0, seen)  # every visible patch counts, no hidden one does
    rows = seen.reshape(3, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    for poison in (float("nan"), float("inf"), 1e30):
        changed = torch.where(rows, images(), torch.tensor(poison))
        assert torch.equal(encode_visible(model, changed, keep), tokens)
    changed = torch.where(rows, torch.tensor(0.1), images())
    assert not torch.allclose(encode_visible(model, changed, keep), tokens)  # the control: visible ones do


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_sees_visible_patches_at_their_places(name):
    """All patches kept: the tokens of the plain model. And afterwards the model is as it was."""
    model = small(name).module.model
    before = model.patch_drop
    every = torch.arange(16).expand(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(encode_visible(model, images(), every), model.forward_features(images()))
    assert model.patch_drop is before
    with pytest.raises(RuntimeError):
        encode_visible(model, images(), torch.full((3, 2), 99))
    assert model.patch_drop is before


def test_masks_have_the_ratio_and_follow_from_the_seed():
    keep = visible_patches(200, 16, 0.75, seed=3)
    assert keep.shape == (200, 4)
    assert (keep.diff(dim=1) > 0).all()
    counts = torch.bincount(keep.reshape(-1), minlength=16)
    assert (counts - 50).abs().max() < 25
    assert torch.equal(keep, visible_patches(200, 16, 0.75, seed=3))
    assert not torch.equal(keep, visible_patches(200, 16, 0.75, seed=4))
    assert visible_patches(1, 4, 0.99, 0).shape == (1, 1)
    assert visible_patches(1, 4, 0.01, 0).shape == (1, 3)  # something is always hidden


def test_masked_loss_by_hand():
    pixels = images(2)
    keep = torch.tensor([[0, 5], [1, 2]])
    patches = patchify(pixels, 16)
    assert torch.equal(patches[0, 5], pixels[0, :, 16:32, 16:32].permute(1, 2, 0).reshape(-1))
    target = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
    assert float(masked_loss(target, pixels, keep, 16)) == 0.0
    wrong = target.clone()
    wrong[0, 0] += 9  # visible: does not count
    assert float(masked_loss(wrong, pixels, keep, 16)) == 0.0
    wrong[1, 3] += 2
    assert float(masked_loss(wrong, pixels, keep, 16)) == pytest.approx(4 / 28)
    assert torch.equal(hidden_pixels(pixels, keep, 16)[0, :, :16, :16], pixels[0, :, :16, :16])
    assert sine_positions((4, 4), 32).unique(dim=0).shape == (16, 32)


def test_the_decoder_learns_from_context(tmp_path):
    """Stripes go on in hidden patches: predicting the mean costs 1, and only what is visible tells direction and
    phase.
    """
    result = run(
        tmp_path,
        n=64,
        epochs=9,
        batch_size=16,
        mask_ratio=0.5,
        learning_rate=3e-3,
        unfreeze=2,
        augment="none",
        decoder_width=64,
    )
    losses = [row["loss"] for row in result.rows]
    assert losses[0] > 1.0
    assert losses[-1] < 0.4  # the noise alone is 0.1


# ---- student and teacher -----------------------------------------------------------------------------------------


def test_dino_loss_by_hand():
    student = [torch.tensor([[0.2, 0.1]]), torch.tensor([[0.0, 0.3]])]
    teacher = [torch.tensor([[0.4, 0.1]]), torch.tensor([[0.2, 0.3]])]
    center = torch.tensor([0.1, 0.2])

    def softmax(values: list[float]) -> np.ndarray:
        e = np.exp(np.array(values))
        return e / e.sum()

    t1, t2 = softmax([0.3 / 0.05, -0.1 / 0.05]), softmax([0.1 / 0.05, 0.1 / 0.05])
    s1, s2 = np.log(softmax([2.0, 1.0])), np.log(softmax([0.0, 3.0]))
    expected = (-(t1 @ s2) - (t2 @ s1)) / 2
    assert float(dino_loss(student, teacher, center, 0.1, 0.05)) == pytest.approx(expected, abs=1e-5)
    assert momentum_at(0, 100, 0.9) == pytest.approx(0.9)
    assert momentum_at(50, 100, 0.9) == pytest.approx(0.95)
    assert momentum_at(100, 100, 0.9) == pytest.approx(1.0)


def test_no_gradient_reaches_the_teacher_and_it_follows_the_student():
    backbone = small("test_vit")
    prepare_explora(backbone, settings(unfreeze=1), seed=0)
    config = settings(teacher_momentum=0.9, center_momentum=0.8)
    objective = DinoObjective(backbone, config, seed=1)
    frozen = backbone.module.model.patch_embed.proj.weight
    assert objective.teacher.model.patch_embed.proj.weight is frozen  # one copy in memory
    own = backbone.module.model.blocks[1].mlp.fc1.weight
    teacher = objective.teacher.model.blocks[1].mlp.fc1.weight
    assert teacher is not own
    objective.loss(backbone.module, [images(), images().flip(3)], 0, 0).backward()
    assert all(p.grad is None for p in [*objective.teacher.parameters(), *objective.teacher_head.parameters()])
    assert own.grad is not None
    assert float(own.grad.abs().max()) > 0
    with torch.no_grad():
        own += 1.0
    before, center = teacher.clone(), objective.center.clone()
    objective.after_step(backbone.module, 0, 100)
    torch.testing.assert_close(teacher, 0.9 * before + 0.1 * own)
    torch.testing.assert_close(objective.center, 0.8 * center + 0.2 * objective._seen)
    assert torch.equal(objective.teacher.model.patch_embed.proj.weight, frozen)


def gap(module: torch.nn.Module, objective: DinoObjective, views: list[torch.Tensor]) -> float:
    """Loss with the views of other images minus the loss with those of the same one."""
    with torch.no_grad():
        matched = objective.loss(module, views, 9, 9)
        strangers = objective.loss(module, [views[0], views[1].roll(5, 0)], 9, 9)
    return float(strangers - matched)


def test_dino_learns_to_tell_two_views_of_one_image_from_those_of_others(tmp_path):
    pictures = printed([encoded(photo(seed, SIDE)) for seed in range(48)], [str(seed) for seed in range(48)])
    backbone = vit()
    config = settings(objective="dino", epochs=8, batch_size=16, prototypes=64, unfreeze=3)
    prepare_explora(backbone, config, seed=5)
    made = PretrainRun(pictures, backbone, config, "x", False, 5, tmp_path)
    with Loader(pictures.items, pictures.names, backbone.preprocessing, "moderate", 77, 1) as loader:
        views = [next(loader.batches([np.arange(48)], 0, view)) for view in (0, 1)]
    made.module.eval()
    assert isinstance(made.objective, DinoObjective)
    before = gap(made.module, made.objective, views)
    made.finish(None, True, None)
    made.module.eval()
    after = gap(made.module, made.objective, views)
    assert 0 < before < 0.04
    assert after > 0.07
    assert made.at.rows[-1]["loss"] < made.at.rows[0]["loss"]
    assert 0 < made.at.rows[-1]["teacher_entropy"] < math.log(64)


# ---- the run -----------------------------------------------------------------------------------------------------


class StopAt:
    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("objective", ["masked", "dino"])
def test_a_stop_before_any_step_changes_no_bit(objective, tmp_path):
    options = {"objective": objective, "n": 20, "augment": "aggressive"}  # three steps an epoch, the last of 4
    seen: list[Any] = []
    whole = run(tmp_path / "whole", progress=seen.append, **options)
    assert seen == whole.rows
    for at in (2, 4, 6):
        folder = tmp_path / str(at)
        with pytest.raises(Checkpointed, match="run the same command"):
            run(folder, stop=StopAt(at), **options)
        resumed = run(folder, **options)
        for name in (CHECKPOINT, "backbone_explora.safetensors", "pretrain.csv"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert resumed.backbone.fingerprint == whole.backbone.fingerprint


def test_the_file_is_a_plain_timm_checkpoint(tmp_path):
    result = run(tmp_path)
    config = BackboneConfig(name="test_vit", weights=str(tmp_path / "backbone_explora.safetensors"), input_size=SIDE)
    again = load_backbone(config)
    assert again.fingerprint == result.backbone.fingerprint != vit().fingerprint
    np.testing.assert_array_equal(again.features(images().numpy()), result.backbone.features(images().numpy()))
    assert 0 < result.share < 0.5
    with (tmp_path / "pretrain.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == result.rows[1]["loss"]
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["pretrain start", "pretrain epoch", "pretrain epoch"]


def test_another_run_is_refused_and_fresh_starts_anew(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"pretrain\.rank 4 -> 2"):
        run(tmp_path, rank=2)
    with pytest.raises(ConfigError, match="data digest"):
        run(tmp_path, n=16)
    assert len(run(tmp_path, rank=2, fresh=True).rows) == 2


def test_collapse_ends_the_run_and_keeps_the_good_checkpoint(tmp_path, monkeypatch):
    """A student that is pulled to one answer for all images."""
    plain = MaskedObjective.loss

    def pulling(self, module, views, epoch, step):
        if epoch == 0:
            return plain(self, module, views, epoch, step)
        features = module(views[0])
        return (features - 1.0).square().mean()

    monkeypatch.setattr(MaskedObjective, "loss", pulling)
    with pytest.raises(
        Stage1Error, match=r"collapsed in epoch \d+: (rank|spread) of the features is .*last good checkpoint is"
    ):
        run(tmp_path, epochs=30, learning_rate=0.03, unfreeze=6)
    stored = load_checkpoint(tmp_path / CHECKPOINT)
    assert stored is not None
    assert (
        collapse(
            Vitals(stored[1]["rows"][-1]["rank"], stored[1]["rows"][-1]["spread"]),
            Vitals(stored[1]["rank"], stored[1]["spread"]),
            0.25,
        )
        is None
    )


def test_loss_not_finite_names_the_step(tmp_path, monkeypatch):
    plain = MaskedObjective.loss

    def poisoned(self, module, views, epoch, step):
        made = plain(self, module, views, epoch, step)
        return made * float("nan") if (epoch, step) == (1, 1) else made

    monkeypatch.setattr(MaskedObjective, "loss", poisoned)
    with pytest.raises(Stage1Error, match=r"loss nan.*step 5 \(epoch 2\).*last good checkpoint is"):
        run(tmp_path)
    monkeypatch.setattr(MaskedObjective, "loss", plain)
    assert len(run(tmp_path).rows) == 2


def test_too_few_images_and_a_device_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="5 images, fewer than one batch of 8"):
        run(tmp_path, n=5)
    with pytest.raises(MissingError, match="'cuda:7'"):
        run(tmp_path, device="cuda:7")


# ---- vitals ------------------------------------------------------------------------------------------------------


def test_rank_counts_directions_and_spread_sees_one_direction():
    rng = np.random.default_rng(0)
    full = rng.normal(size=(400, 8)).astype(np.float32)
    assert effective_rank(full) == pytest.approx(8, abs=0.1)
    assert spread(full) == pytest.approx(1.0, abs=0.02)
    three = (rng.normal(size=(400, 3)) @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]).astype(np.float32)
    assert effective_rank(three) == pytest.approx(3, abs=0.1)
    assert effective_rank(three + 100) == pytest.approx(3, abs=0.1)  # an offset is no information
    line = np.outer(rng.normal(size=400), np.ones(8)).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1, abs=0.01)
    assert effective_rank(np.ones((10, 4), np.float32)) == 0.0
    assert spread(full * 1e-3 + 5.0) < 0.01
    assert spread(np.ones((10, 4), np.float32)) == 0.0


def test_collapse_names_what_fell():
    before = Vitals(20.0, 0.6)
    assert collapse(Vitals(19.0, 0.5), before, 0.25) is None
    assert "rank of the features is 4, was 20" in str(collapse(Vitals(4.0, 0.5), before, 0.25))
    assert "spread of the features is 0.1, was 0.6" in str(collapse(Vitals(19.0, 0.1), before, 0.25))
    with pytest.raises(Stage1Error, match="not finite"):
        Vitals.of(np.full((3, 2), np.nan, np.float32))


# ---- leakage through pretraining ---------------------------------------------------------------------------------


def photo(seed: int, side: int = 90) -> np.ndarray:
    """Smooth random picture with structure enough for a hash."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def encoded(rgb: np.ndarray, quality: int = 95) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def test_the_same_and_nearly_the_same_images_are_found():
    protected = printed([encoded(photo(seed)) for seed in range(6)], [f"test{seed}" for seed in range(6)])
    fresh = [encoded(photo(seed)) for seed in range(10, 16)]
    clean = printed(fresh, [f"u{i}" for i in range(6)])
    assert overlapping(clean, protected, 3) == []
    refuse_overlap(clean, protected, 3)
    resized = encoded(np.asarray(Image.fromarray(photo(4)).resize((70, 70))), quality=70)
    mixed = printed([*fresh, protected.items[2], resized], [f"u{i}" for i in range(8)])
    assert overlapping(mixed, protected, 3) == [(6, 2, "same bytes"), (7, 4, "near-duplicate")]
    with pytest.raises(DataError, match=r"2 of 8 images overlap val_calib and val_test .*u6 and test2 \(same bytes\)"):
        refuse_overlap(mixed, protected, 3)


def test_a_folder_is_read_and_compared_with_the_roles_of_the_table(tmp_path, caplog):
    for seed in range(4):
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / f"{seed}.JPG").write_bytes(encoded(photo(seed)))
    (tmp_path / "copy.jpg").write_bytes(encoded(photo(0)))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    (tmp_path / "notes.txt").write_text("no image")
    paths = unlabelled_images(tmp_path)
    assert [path.name for path in paths] == ["broken.png", "copy.jpg", "0.JPG", "1.JPG", "2.JPG", "3.JPG"]
    prints = printed(paths, [str(path) for path in paths])
    assert len(prints) == 4  # the copy counts once, the broken one not
    assert "1 of 6 images cannot be read" in caplog.text
    assert prints.ids[0] == digest_bytes(encoded(photo(0)))

    roles = np.array(["train", "val_select", "val_calib", "val_test"])
    store = tmp_path / "table"
    store.mkdir()
    texts = []
    for seed in range(4):
        (store / f"{seed}.jpg").write_bytes(encoded(photo(seed), quality=60))
        texts.append(str(store / f"{seed}.jpg"))
    ids = [digest_bytes(Path(text).read_bytes()) for text in texts]
    blank = np.array([""] * 4)
    table = SampleTable(
        np.array(ids), np.array(texts), np.zeros(4, np.int64), np.array(ids), blank, blank, roles, ("a", "b")
    )
    protected = protected_images(table)
    assert len(protected) == 2
    assert [(row, how) for row, _, how in overlapping(prints, protected, 3)] == [
        (2, "near-duplicate"),
        (3, "near-duplicate"),
    ]


def test_folders_without_images(tmp_path):
    with pytest.raises(MissingError, match="no such folder"):
        unlabelled_images(tmp_path / "gone")
    with pytest.raises(DataError, match="no images below it"):
        unlabelled_images(tmp_path)
    with pytest.raises(DataError, match="none of 1 images can be read; the first: x"):
        printed([b"junk"], ["x"])
