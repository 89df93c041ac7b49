"""Evaluation: what is asked (settings), done (measurement), kept (records), tabled (tables, checks) and told (report)."""
