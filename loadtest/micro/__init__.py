"""Programs that measure one part of wsgate alone, in the process that runs the program."""
