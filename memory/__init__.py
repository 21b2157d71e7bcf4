"""Keeps a conversation bounded. Knows core and no framework."""
