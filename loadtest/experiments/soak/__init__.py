"""A mixed population with faults for a given time, and a check that nothing was lost silently."""
