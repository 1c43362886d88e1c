"""The journal: records, AIM files, their writer, reader and recovery. All stages share it."""
