"""Programs that each answer one question about a whole gateway or a whole reactor under load."""
