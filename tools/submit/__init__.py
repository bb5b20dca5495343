"""What an organiser would find: an image against the contract, its figures on two scans, the archive to send in."""
