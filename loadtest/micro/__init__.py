"""Programs that measure one part of wsgate by itself, in the process that runs the program."""
