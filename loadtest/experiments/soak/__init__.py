"""A mixed population of clients with faults for a given time, and a check of every lost publication."""
