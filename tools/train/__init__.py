"""Training: from raw scans to a bundle that the app can run."""
