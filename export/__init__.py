"""A fine-tuned checkpoint in, a published version of the model repository out."""
