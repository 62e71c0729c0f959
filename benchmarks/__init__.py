"""Benchmarks: what the server costs beside the engines it drives, as ratios measured side by side in one run."""
