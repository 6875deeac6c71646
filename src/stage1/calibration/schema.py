"""calibration.json, typed: a map with its parameters, and how it was chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Digest, Distinct, Nothing, NotNegative, PositiveInt, Text

Numbers = Annotated[list[float], Field(min_length=1)]

# ---- how it was chosen -------------------------------------------------------------------------------------------


class ComparedMap(TypedDict):
    """One map on rows that it was not fitted on, in nats."""

    name: Text
    nll: float | None
    standard_error: float | None
    change: float | None
    change_standard_error: float | None
    note: str | None


class MapComparison(TypedDict):
    """How the map was chosen on val_select: losses of rows that each map was not fitted on, in nats."""

    chosen: Text
    reason: Text
    n: Count
    folds: Count
    table: list[ComparedMap]


# ---- the parameters of each map ----------------------------------------------------------------------------------


class TemperatureParameters(TypedDict):
    slope: NotNegative


class PlattParameters(TypedDict):
    slope: NotNegative
    shift: float
    smoothing: bool


class BetaParameters(TypedDict):
    a: NotNegative
    b: NotNegative
    c: float


class VectorParameters(TypedDict):
    slopes: Numbers
    shifts: Numbers


class DirichletParameters(TypedDict):
    weights: Annotated[list[Numbers], Field(min_length=2)]
    shifts: Numbers
    lam: NotNegative
    mu: NotNegative


class Curve(TypedDict):
    scores: Numbers
    values: Numbers


class IsotonicParameters(TypedDict):
    curves: Annotated[list[Curve], Field(min_length=1)]


# ---- the document ------------------------------------------------------------------------------------------------


class _Map(Document):
    """A calibration map: raw scores to probabilities, fitted on val_select and frozen."""

    n_classes: Annotated[int, Field(ge=2)]
    fitted_on: Digest | None
    monotone: bool
    constrained: Distinct[str]
    comparison: NotRequired[MapComparison]


class IdentityDocument(_Map):
    """The softmax as it is."""

    name: Literal["identity"]
    parameters: Nothing
    n: Count


class TemperatureDocument(_Map):
    """Temperature scaling."""

    name: Literal["temperature"]
    parameters: TemperatureParameters
    n: PositiveInt


class PlattDocument(_Map):
    """Platt scaling."""

    name: Literal["platt"]
    parameters: PlattParameters
    n: PositiveInt


class BetaDocument(_Map):
    """Beta calibration."""

    name: Literal["beta"]
    parameters: BetaParameters
    n: PositiveInt


class VectorDocument(_Map):
    """Vector scaling."""

    name: Literal["vector"]
    parameters: VectorParameters
    n: PositiveInt


class DirichletDocument(_Map):
    """Dirichlet calibration."""

    name: Literal["dirichlet"]
    parameters: DirichletParameters
    n: PositiveInt


class IsotonicDocument(_Map):
    """Isotonic regression."""

    name: Literal["isotonic"]
    parameters: IsotonicParameters
    n: PositiveInt


_NAMED = ("identity", "temperature", "platt", "beta", "vector", "dirichlet", "isotonic")


class OtherDocument(_Map):
    """A map that was added to the registry, which checks its parameters itself."""

    name: Annotated[Text, Field(json_schema_extra={"not": {"enum": list(_NAMED)}})]
    parameters: dict[str, Any]
    n: Count


def _by_name(document: Any) -> str:
    name = document.get("name") if isinstance(document, dict) else None
    return name if name in _NAMED else "other"


MapDocument = Annotated[
    Annotated[IdentityDocument, Tag("identity")]
    | Annotated[TemperatureDocument, Tag("temperature")]
    | Annotated[PlattDocument, Tag("platt")]
    | Annotated[BetaDocument, Tag("beta")]
    | Annotated[VectorDocument, Tag("vector")]
    | Annotated[DirichletDocument, Tag("dirichlet")]
    | Annotated[IsotonicDocument, Tag("isotonic")]
    | Annotated[OtherDocument, Tag("other")],
    Discriminator(_by_name),
]
CALIBRATION_KIND = DocumentKind("calibration", MapDocument)
