"""Runs Triton without Docker: `python -m server`."""
