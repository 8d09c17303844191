"""A chat room: a page, the gateway, and a backend that has the last word."""
