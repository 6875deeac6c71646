"""Cached features: the keyed, sharded store, and extraction into it."""

from stage1.features.extract import Extraction, Progress, extract_features, per_view
from stage1.features.store import FeatureKey, FeatureStore

__all__ = ["Extraction", "FeatureKey", "FeatureStore", "Progress", "extract_features", "per_view"]
