"""Prefect flows: order, retries, limits; one flow per verb; nothing computes here."""
