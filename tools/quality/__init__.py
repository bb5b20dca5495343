"""Whether the agreement of two networks tells how good a label map is."""
