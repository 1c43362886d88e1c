"""What people see: the state of both ends, as JSON, as text and as a live dashboard."""
