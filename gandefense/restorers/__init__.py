"""Restorers: networks that clean images before a classifier sees them."""
