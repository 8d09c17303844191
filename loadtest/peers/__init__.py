"""The servers and floods of the measuring programs, each of which runs as its own process.

Most modules are servers: ``python -m loadtest.peers.reactor_server '{"ping_interval_ms": 0}'``. A server
listens on a free loopback port, echoes messages, and subscribes a client that sends ``subscribe:NAME``. It
reads JSON commands from standard input and writes replies to standard output (see ``control``), so that every
scenario runs unchanged on each server.
"""
