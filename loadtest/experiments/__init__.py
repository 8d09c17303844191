"""Programs that answer one question each about a whole gateway or a whole reactor under load."""
