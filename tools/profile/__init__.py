"""Memory and CPU curves of a command, or of FLARE's container runs, with the organisers' figures and truer ones."""
