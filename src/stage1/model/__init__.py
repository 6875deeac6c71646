"""The torch half's models. Import the modules by name: this file stays empty, so that no import loads torch by
accident."""
