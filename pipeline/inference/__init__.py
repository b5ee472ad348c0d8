"""Whole cases from networks: tiles, norms, blending, fusion, blocks, soft files, answers; and the
model files that networks come from.
"""
