"""The page: a Gradio app for people, which talks HTTP to the gateway and to nobody else."""
