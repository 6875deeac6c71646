"""From the views of an image to one score: aggregators, which of them, and how many views an image needs."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.views.adaptive import Sequence, Step, fit_sequence
    from stage1.views.base import VIEWS_FILE, Aggregator, as_logits, margins
    from stage1.views.document import ViewsDocument
    from stage1.views.learned import Learned, Pooled, deciding_view, weight_of_views
    from stage1.views.pooling import Pool
    from stage1.views.registry import AGGREGATORS, AggregatorKind, aggregator
    from stage1.views.selection import Candidate, Choice, Refit, choose_aggregator, cross_fitted
    from stage1.views.stopping import expected_exits, expected_rates
else:
    __getattr__ = names(
        __name__,
        adaptive="Sequence Step fit_sequence",
        base="VIEWS_FILE Aggregator as_logits margins",
        document="ViewsDocument",
        learned="Learned Pooled deciding_view weight_of_views",
        pooling="Pool",
        registry="AGGREGATORS AggregatorKind aggregator",
        selection="Candidate Choice Refit choose_aggregator cross_fitted",
        stopping="expected_exits expected_rates",
    )

__all__ = [
    "AGGREGATORS",
    "VIEWS_FILE",
    "Aggregator",
    "AggregatorKind",
    "Candidate",
    "Choice",
    "Learned",
    "Pool",
    "Pooled",
    "Refit",
    "Sequence",
    "Step",
    "ViewsDocument",
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
