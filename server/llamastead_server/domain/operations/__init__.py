"""What an operator sees and does: health, logs, meters, caches, diagnosis, shutdown."""
