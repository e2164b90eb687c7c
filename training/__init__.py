"""Text and labels in, registered models out: the training toolkit of Nunchi."""
