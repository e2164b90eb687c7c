"""How a program of yours asks Triton directly: one example per protocol, each complete in itself."""
