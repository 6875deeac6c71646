"""A contest whose rules were written down before it was run: contract.json, and run.py, which keeps to it."""
