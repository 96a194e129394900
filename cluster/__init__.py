"""How a command reaches a Ray cluster: a running one by its address, or one of its own on this machine."""
