"""The source side of a mount: pyfuse3 requests become records, then bytes of the image."""
