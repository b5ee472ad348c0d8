"""From volumes and images to checked answers: cross-validated training, tiled prediction, ensembling, topology repair, submission."""

__version__ = "0.1.0"
