"""Whether a certificate still stands where it is used."""

from stage1.monitoring.state import Condition, Standing, State

__all__ = ["Condition", "Standing", "State"]
