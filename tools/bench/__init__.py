"""Time and memory of this container beside real nnU-Net v1 and v2, and beside its own floor."""
