"""The figures of the report, one file each, and the table of them; and the figures of other commands."""
