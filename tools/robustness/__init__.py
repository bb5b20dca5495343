"""What a bundle makes of held-out scans, as they are and made worse."""
