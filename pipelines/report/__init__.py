"""`msrcnn report`: an evaluation, or several side by side, as one HTML page that needs nothing else."""
