"""From folders on disk to batches: find cases, check them, store them, split them, normalise them,
draw patches.
"""
