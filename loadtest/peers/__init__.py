"""The servers the bench drives: the reactor, and what it is compared with, behind one control channel.

Each module is a program: ``python -m loadtest.peers.reactor_server '{"ping_interval_ms": 0}'``. It listens on
a free loopback port, echoes, and lets clients subscribe by the message ``subscribe:NAME``. JSON commands come
in on standard input, answers leave on standard output (see ``control``), so that every scenario runs
unchanged on each of them.
"""
