"""Parts of benchmarks/views.py."""
