"""The far side: a store takes AIM files in, executes them in order, and says how far it is."""
