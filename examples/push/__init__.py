"""Notifications for a phone that loses its network: after it reconnects it receives what it missed, once."""
