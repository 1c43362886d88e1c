"""aimfuse: asynchronous, write-ordered mirroring of disk images over any file transfer."""

__version__ = "0.1.0"
