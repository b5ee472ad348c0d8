"""What turns data, networks and losses into trained models and whole-case predictions."""
