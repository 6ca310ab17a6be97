"""What can be trained, one module each: its parameters, its loss, its file."""
