"""Scans made worse in ways that hospitals know, and their label maps with them."""
