"""Where a cell's networks run: devices, and the runtimes of packed networks."""
