"""Made data with known truth: generated street scenes."""
