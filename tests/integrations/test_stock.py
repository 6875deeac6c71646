"""Stock twins of timm models: the same logits from transformers alone, and refusals by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("transformers")

from stage1.config import BackboneConfig  # noqa: E402
from stage1.errors import ConfigError  # noqa: E402
from stage1.integrations.stock import stock_model  # noqa: E402
from stage1.model.backbone import _Pooled  # noqa: E402

VIT = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2}
DINO = {**VIT, "img_size": 56}
SWIN = {"img_size": 64, "window_size": 4, "depths": (2, 2), "embed_dim": 16, "num_heads": (2, 2)}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
CASES = {
    "vit cls": ("vit_tiny_patch16_224", VIT, "cls", 64, "ViTForImageClassification"),
    "vit pool": ("vit_tiny_patch16_224", VIT, "pool", 64, "ViTForImageClassification"),
    "vit mean": ("vit_tiny_patch16_224", VIT, "mean", 64, "Dinov2ForImageClassification"),
    "vit cls+mean": ("vit_tiny_patch16_224", VIT, "cls+mean", 64, "Dinov2ForImageClassification"),
    "dinov2 cls": ("vit_small_patch14_dinov2", DINO, "cls", 56, "Dinov2ForImageClassification"),
    "dinov2 mean": ("vit_small_patch14_dinov2", DINO, "mean", 56, "Dinov2ForImageClassification"),
    "dinov2 cls+mean": ("vit_small_patch14_dinov2", DINO, "cls+mean", 56, "Dinov2ForImageClassification"),
    "siglip": ("vit_base_patch16_siglip_224", VIT, "mean", 64, "SiglipForImageClassification"),
    "siglip tanh": ("vit_so400m_patch14_siglip_224", DINO, "mean", 56, "SiglipForImageClassification"),
    "beit": ("beit_base_patch16_224", VIT, "pool", 64, "BeitForImageClassification"),
    "swinv2": ("swinv2_base_window8_256", SWIN, "pool", 64, "Swinv2ForImageClassification"),
    "convnextv2": ("convnextv2_atto", CONVNEXT, "pool", 64, "ConvNextV2ForImageClassification"),
}  # fmt: skip


def made(name, arguments, pooling):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0, **arguments).eval()
        with torch.no_grad():  # untrained biases are 0, norms are 1: a mapping that drops them must show
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        pooled = _Pooled(model, BackboneConfig(name=name, pooling=pooling)).eval()
    return model, pooled


def loaded(folder, stock):
    from safetensors.torch import save_file
    from transformers import AutoModelForImageClassification

    names = {"id2label": {"0": "None", "1": "Roadwork"}, "label2id": {"None": 0, "Roadwork": 1}}
    (folder / "config.json").write_text(json.dumps({**stock.config, **names}))
    weight, bias = stock.classifier
    save_file(
        {**stock.weights, "classifier.weight": weight.contiguous(), "classifier.bias": bias},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, local_files_only=True)


@pytest.mark.parametrize("case", CASES)
def test_twin_gives_the_same_logits(case, tmp_path):
    name, arguments, pooling, size, architecture = CASES[case]
    model, pooled = made(name, arguments, pooling)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, size, size, generator=generator)
    with torch.inference_mode():
        features = pooled(images)
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, features.shape[1]), (2,)))
    wanted = features @ weight.T + bias
    stock = stock_model(model, name, pooling, size, weight, bias)
    assert stock.config["architectures"] == [architecture]
    twin, info = loaded(tmp_path, stock)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        logits = twin.eval()(images).logits
    assert (wanted[0] - wanted[1]).abs().max() > 0.05  # the images differ to the model
    np.testing.assert_allclose(logits.numpy(), wanted.numpy(), atol=1e-5)
    # The control: one bias of the last block that were another would show (not a constant, the last norm takes that
    # off).
    last = next(
        key for key in reversed(stock.weights) if key.endswith(("fc2.bias", "output.dense.bias", "pwconv2.bias"))
    )
    stock.weights[last] += torch.linspace(-0.5, 0.5, len(stock.weights[last]))
    with torch.inference_mode():
        assert (loaded(tmp_path, stock)[0].eval()(images).logits - wanted).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name, arguments, pooling, words",
    [
        ("tf_efficientnet_lite0", {}, "pool", ["EfficientNet", "transformers 4.45"]),
        ("vit_small_patch14_reg4_dinov2", DINO, "cls", ["register tokens"]),
        ("vit_small_patch16_dinov3", {"depth": 1, "embed_dim": 32, "num_heads": 2}, "cls", ["Eva"]),
        ("deit_tiny_distilled_patch16_224", VIT, "cls", ["VisionTransformerDistilled"]),
        ("vit_base_patch16_siglip_224", VIT, "pool", ["'map'"]),
        ("vit_base_patch16_clip_224", VIT, "cls", ["CLIP"]),
        ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg"}, "pool", ["after pooling"]),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, "pool", ["ConvNeXt V2 only"]),
        ("convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, "mean", ["'mean'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_other_models_are_refused_with_the_way_out(name, arguments, pooling, words):
    model = timm.create_model(name, num_classes=0, **arguments)
    with pytest.raises(ConfigError) as caught:
        stock_model(model, name, pooling, 64, torch.zeros(2, 32), torch.zeros(2))
    for word in (*words, repr(name), "ONNX bundle"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
