"""What each command does, as functions with plain arguments: the same that a Python user calls."""
