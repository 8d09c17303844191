"""A chat room: a web page, a gateway, and a backend that decides what is published."""
