"""The coordinator: ships sealed journal files to every destination and follows their acks."""
