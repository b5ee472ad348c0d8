"""One fold from its first step to its last: loop, states, optimisers, ranks, journal."""
