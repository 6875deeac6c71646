"""Section views: parts of each image that are evaluated beside the whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stage1.config.base import PositiveInt, Rate, Section, Share
from stage1.errors import ConfigError, DataError
from stage1.runtime.crops import ViewPolicy


class ViewsConfig(Section):
    """Parts of each image that are looked at beside the whole, and how their answers become one. Off without grid,
    scales or flips.
    """

    whole: bool = True
    """The whole image, as without views, is the first view."""
    grid: str | None = None
    """Tiles as ROWSxCOLUMNS, e.g. 3x3."""
    overlap: Share = 0.12
    """A tile is this share longer than side / n."""
    flips: bool = False
    """Each view also mirrored."""
    scales: list[Rate] = []
    """Further centre crops, of these shares of each side."""
    aggregate: str | list[str] = "auto"
    """From the views' logits to the image's: whole, mean, topk:3, lse:8, noisy_or, max or learned. A list, or auto (all
    of them): the one of least AUGRC on val_select whose gain over the whole view is shown, else the whole view alone.
    """
    adaptive: bool = False
    """Look at one view after the other and stop where the answer is safe; two classes."""
    tolerance: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    """adaptive: share of the errors let pass that early answers may use up; less costs views and spares coverage."""
    train: Literal["whole", "views", "mil", "pooled"] = "whole"
    """What the head learns from. whole: whole images. views: each view with the label of its image. mil: the views'
    pooled logits. pooled: pooled features (the whole view's, the largest and the mean of the others'), of which it
    makes one answer."""
    pool: str = "mean"
    """How views are pooled in training (mil) and for the choice of the epoch: mean, lse:8 or topk:3."""
    resamples: PositiveInt = 1000
    """Bootstrap resamples of the comparison on val_select."""

    @field_validator("grid")
    @classmethod
    def _rows_and_columns(cls, grid: str | None) -> str | None:
        rows, sign, columns = (grid or "").lower().partition("x")
        if grid is not None and not (sign and rows.isdecimal() and columns.isdecimal()):
            raise ValueError("a grid looks like ROWSxCOLUMNS, e.g. 3x3")
        return grid

    @field_validator("aggregate")
    @classmethod
    def _known_aggregates(cls, aggregate: str | list[str]) -> str | list[str]:
        if aggregate == "auto":
            return aggregate
        if not aggregate:
            raise ValueError("no names; give one, or auto")
        from stage1.views.registry import aggregate_name

        try:
            return aggregate_name(aggregate) if isinstance(aggregate, str) else [aggregate_name(n) for n in aggregate]
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("views.aggregate: ")) from error

    @field_validator("pool")
    @classmethod
    def _known_pool(cls, pool: str) -> str:
        from stage1.views.pooling import pool_name

        try:
            name = pool_name(pool)
        except ConfigError:
            name = ""
        if name != "mean" and not name.startswith(("lse:", "topk:")):
            raise ValueError("unknown pooling; use mean, lse:8 or topk:3")
        return name

    @model_validator(mode="after")
    def _geometry(self) -> ViewsConfig:
        try:
            policy = self.policy
        except DataError as error:
            raise ValueError(str(error).removeprefix("views: ")) from error
        if policy is None and (self.adaptive or self.train != "whole"):
            name = "adaptive" if self.adaptive else "train"
            raise ValueError(f"{name} needs views beside the whole image; set views.grid=3x3")
        return self

    @model_validator(mode="after")
    def _go_together(self) -> ViewsConfig:
        policy, names = self.policy, self.names or []
        if policy is not None and not policy.whole and "whole" in names:
            raise ValueError("aggregate=whole with whole=false; use mean, or set views.whole=true")
        if self.adaptive and (set(names) == {"whole"} or (policy is not None and policy.count == 1)):
            reason = "whole=false and one view" if set(names) != {"whole"} else "aggregate=whole"
            raise ValueError(
                f"adaptive with {reason}, where no further views are left to stop before; set views.adaptive=false"
            )
        if self.train == "pooled":
            for name, given in (
                ("adaptive", self.adaptive),
                ("aggregate", self.aggregate != "auto"),
                ("pool", self.pool != "mean"),
            ):
                if given:
                    raise ValueError(
                        f"{name} does not go with train=pooled, whose head makes one answer of all views; leave it out"
                    )
        return self

    @property
    def names(self) -> list[str] | None:
        """The aggregators asked for by name; None for auto, which compares all that there are."""
        if self.aggregate == "auto":
            return None
        return [self.aggregate] if isinstance(self.aggregate, str) else list(self.aggregate)

    @property
    def policy(self) -> ViewPolicy | None:
        """The views, or None where there is nothing but the whole image. Raises DataError for an impossible
        geometry.
        """
        if self.whole and self.grid is None and not self.flips and not self.scales:
            return None
        rows, _, columns = (self.grid or "").lower().partition("x")
        return ViewPolicy(
            whole=self.whole,
            grid=(int(rows), int(columns)) if rows else None,
            overlap=self.overlap,
            flips=self.flips,
            scales=tuple(self.scales),
        )

    @property
    def cached(self) -> ViewPolicy | None:
        """The views whose features training needs; None where the head learns from whole images."""
        return None if self.train == "whole" else self.policy
