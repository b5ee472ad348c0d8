"""Predictions against labels: training patches, held-out cases of a fold, and folders of files."""
