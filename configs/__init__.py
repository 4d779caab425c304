"""Presets in YAML, and `schema`, which composes the rooms' settings and reads them."""
