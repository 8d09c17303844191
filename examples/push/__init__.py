"""Push to a phone that goes away and comes back: it gets what it missed, nothing twice."""
