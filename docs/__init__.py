"""The pages of the documentation, and what writes docs/api.md."""
