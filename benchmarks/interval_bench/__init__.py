"""Coverage simulations of every interval, verdict and "better" that the product prints; see `tally`."""
