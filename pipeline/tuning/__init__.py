"""The choice of post-processing: what is tried, on which cases, and what it gains."""
