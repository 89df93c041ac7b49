"""Training: what every loop shares (run) and one loop a file, each read from top to bottom."""
