"""From a folder of images to a config: what the data are, what follows from it, what it costs.

arrangement -> look -> fingerprint -> rules (nnU-Net's presets, or our own for small budgets) ->
plan (a config, a reason for each value) -> cost (one measured step).
"""
