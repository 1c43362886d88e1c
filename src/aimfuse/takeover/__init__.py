"""Change sides: hand over to a mirror, and make an old source a mirror of the new one."""
