"""What runs in child processes, and how they are supervised."""
