"""From images on disk to a table with roles."""

from stage1.data.duplicates import near_duplicates
from stage1.data.ingest import Ingest, read_source, source_digest
from stage1.data.splits import SplitResult, assign_roles, split_table
from stage1.data.table import SampleTable
from stage1.sources.quarantine import Quarantined, QuarantineError, write_quarantine

__all__ = [
    "Ingest",
    "QuarantineError",
    "Quarantined",
    "SampleTable",
    "SplitResult",
    "assign_roles",
    "near_duplicates",
    "read_source",
    "source_digest",
    "split_table",
    "write_quarantine",
]
