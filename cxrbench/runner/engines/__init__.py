"""Engines: thin adapters that start workers."""
