"""Slim inference app: a CT scan in, a 13-organ label map out.

Inside this package every array is ordered (z, y, x); only ``volume_io`` speaks of xyz.
"""

__version__ = "0.1.0"
