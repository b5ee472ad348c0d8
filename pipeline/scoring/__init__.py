"""Answers against labels: patches while training, held-out cases of a fold, folders of files."""
