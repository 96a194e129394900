"""What speed and memory are claimed, as commands that measure them beside a competitor."""
