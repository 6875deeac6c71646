"""Parts of benchmarks/arms.py: the data sets, the training of one arm, the comparison, the table."""
