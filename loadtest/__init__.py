"""Measures a running stack from outside: how fast, and what the gateway adds."""
