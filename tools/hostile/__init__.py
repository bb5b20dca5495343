"""Hostile inputs, faults, endurance and determinism: ``python -m tools.hostile``."""
