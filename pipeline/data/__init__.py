"""Data from folders on disk to batches: cases, checks, cache, folds, normalisation, patches."""
