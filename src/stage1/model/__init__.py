"""The torch half's models. Import the modules by name: this file stays empty, so that nothing loads torch early."""
