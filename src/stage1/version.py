"""The version of the package, for those below its face."""

__version__ = "0.2.0"
