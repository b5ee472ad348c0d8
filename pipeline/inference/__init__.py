"""Prediction of whole cases: tiling, blending, fusion, and files of models and probabilities."""
