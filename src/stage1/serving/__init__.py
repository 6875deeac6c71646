"""A bundle behind HTTP: worker processes that answer as `stage1 predict` does, and a server that loses no request."""
