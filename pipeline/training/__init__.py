"""Training of one fold: loop, validation, states, optimisers, ranks, journal."""
