"""From the views of an image to one score: aggregators, which of them, and how many views an image needs."""

from stage1.aggregation.adaptive import Sequence, Step
from stage1.aggregation.aggregators import DEFAULT_NAMES, MULTICLASS, Aggregator, Pool, aggregator, as_logits, margins
from stage1.aggregation.choose import Candidate, Choice, choose_aggregator
from stage1.aggregation.cross_fit import Refit, cross_fitted
from stage1.aggregation.exits import expected_exits, expected_rates
from stage1.aggregation.frozen import VIEWS_FILE, FrozenViews
from stage1.aggregation.learned import Learned
from stage1.aggregation.pooled import Pooled, deciding_view, weight_of_views
from stage1.aggregation.sequence_fit import fit_sequence

__all__ = [
    "DEFAULT_NAMES",
    "MULTICLASS",
    "VIEWS_FILE",
    "Aggregator",
    "Candidate",
    "Choice",
    "FrozenViews",
    "Learned",
    "Pool",
    "Pooled",
    "Refit",
    "Sequence",
    "Step",
    "aggregator",
    "as_logits",
    "choose_aggregator",
    "cross_fitted",
    "deciding_view",
    "expected_exits",
    "expected_rates",
    "fit_sequence",
    "margins",
    "weight_of_views",
]
