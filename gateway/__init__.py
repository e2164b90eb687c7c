"""The gateway: text in over HTTP, tokens to Triton over gRPC, labels out.  `python -m gateway` runs it."""
