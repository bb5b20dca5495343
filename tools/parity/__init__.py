"""Our predictions beside those of real nnU-Net v1 and v2, on the same networks and the same scans."""
