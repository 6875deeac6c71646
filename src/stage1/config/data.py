"""Sections data and split: where the images come from, and which role each group of them has."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stage1.config.base import OneOf, PositiveInt, Section, Seed, Share


class RoadscenesConfig(Section):
    videos: PositiveInt = 400
    """Number of videos (groups) to generate; each has 1 to 5 neighbouring frames."""
    size: Annotated[int, Field(ge=64, le=2048)] = 320
    """Side of the square frames, pixels."""
    seed: Seed = 0
    """Seed of the generator; the same seed gives the same pixels."""


_Role = Literal["train", "val_select", "val_calib", "val_test"]


class ChallengeConfig(Section):
    """Images as the StreetVision client sends them (data/challenge), made after the split: a certificate is then of
    these.
    """

    roles: dict[_Role, Literal["L0", "L1", "L2", "L3", "mixture"]] = {}
    """Level per role; mixture: the four, equally likely. A role that is not named keeps its own images; empty: none
    is made.
    """
    copies: dict[_Role, PositiveInt] = {}
    """Challenges per image of a role; 1 where not named. Copies stay in the group of their image."""
    seed: Seed = 0
    filter: bool = False
    """Keep only rows that the client would send: class 1 with a text in the column scene_description, class 0
    without.
    """

    @model_validator(mode="after")
    def _copies_of_made_roles(self) -> ChallengeConfig:
        if idle := sorted(set(self.copies) - set(self.roles)):
            raise ValueError(f"copies.{idle[0]}: no level is given for this role; add roles.{idle[0]}=mixture")
        return self


def _source_names() -> tuple[str, ...]:
    from stage1.sources.registry import config_names

    return config_names()


class DataConfig(Section):
    source: Annotated[str, OneOf(_source_names)] = "auto"
    """Kind of source; auto decides by what `table` points to."""
    table: str | None = None
    """A CSV/TSV/Parquet file, an ImageFolder root, a saved Hugging Face dataset (or hf:NAME), a WebDataset .tar,
    or shards: a folder of .tar or .parquet files, part-{000..012}.tar, part-*.tar."""
    role_tables: dict[Literal["train", "val_select", "val_calib", "val_test"], str] = {}
    """Separate tables per role, instead of `table`; given roles are checked, never recomputed."""
    roles: dict[str, str] = {}
    """What the folders, splits or values of a column role or split are: {train: train, val: val_select+val_calib, test:
    val_test}.
    Several roles joined by + : the split cuts there, by group, in the ratio of split.fractions. none: left out."""
    classes: list[str] | None = None
    """Class names in order; the second is the positive class. None: taken from the source once, sorted, and stored."""
    slices: list[str] = []
    """A column of the table (city) for whose values the risks are to hold each, at its share of delta: every value gets
    thresholds of its own, and an image without a certified value defers. Of several columns, see
    policy.slice_thresholds: one pair for all.
    """
    bad_labels: Literal["error", "quarantine"] = "error"
    """What to do with a label outside `classes`."""
    max_quarantine: Share = 0.01
    """Largest share of images that may be quarantined before the run fails; up to 3 images (and 5 %) always may,
    but at 0.
    """
    max_pixels: PositiveInt = 64_000_000
    """Images with more pixels than this are quarantined unread."""
    near_duplicates: bool = True
    """Join near-duplicate images (dHash) to one group before the split."""
    near_duplicate_distance: Annotated[int, Field(ge=0, le=7)] = 3
    """Largest Hamming distance of two 64-bit dHashes that counts as a near-duplicate."""
    roadscenes: RoadscenesConfig = RoadscenesConfig()
    """The embedded generator, used where `source` is roadscenes."""
    challenge: ChallengeConfig = ChallengeConfig()

    @field_validator("roles")
    @classmethod
    def _pools(cls, roles: dict[str, str]) -> dict[str, str]:
        """Each value in the order of the roles, so that one pool has one spelling."""
        known, pools = get_args(_Role), {}
        for name, text in roles.items():
            parts = [part.strip() for part in text.split("+")]
            if parts != ["none"] and (not set(parts) <= set(known) or len(set(parts)) < len(parts)):
                raise ValueError(f"{name}: {text}: give roles of {', '.join(known)}, several joined by +, or none")
            pools[name] = "+".join(sorted(parts, key=known.index) if parts != ["none"] else parts)
        return pools

    @field_validator("classes", mode="before")
    @classmethod
    def _names_are_text(cls, names: Any) -> Any:
        """From Python, numbers and booleans are taken as the names they look like; files and overrides keep what
        was written.
        """
        if not isinstance(names, (list, tuple)):
            return names
        return [str(name) if isinstance(name, (bool, int, float)) else name for name in names]


class FractionsConfig(Section):
    train: Share = 0.4
    val_select: Share = 0.1
    val_calib: Share = 0.35
    val_test: Share = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self) -> FractionsConfig:
        total = self.train + self.val_select + self.val_calib + self.val_test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the four fractions sum to {total:g}, not 1")
        return self


class SplitConfig(Section):
    method: Literal["hash", "balanced"] = "hash"
    """hash: role by hash(seed, group), stable as data grows. balanced: for few groups, at random inside strata of
    label mix and size. By both every group has the same chance of each role."""
    fractions: FractionsConfig = FractionsConfig()
    seed: Seed = 0
    allow_leakage: bool = False
    """Go on where the same or a near-identical image stands in two given roles; the run is then marked uncertified."""
