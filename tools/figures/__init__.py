"""Pictures of scans, label maps and measurements; written from data on disk, without a display."""
