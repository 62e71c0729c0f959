"""Work that outlives its request: tasks and batches."""
