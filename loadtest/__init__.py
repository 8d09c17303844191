"""Programs that measure wsgate from outside: the bench, experiments, and the client engine and floor probe.

They are built in place by make and are not part of the wheel. Except where a program measures a part of
wsgate directly, they share no code with it.
"""
