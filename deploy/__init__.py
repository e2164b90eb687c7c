"""How the parts run together: on one machine (local.py); in containers and clusters, beside it."""
