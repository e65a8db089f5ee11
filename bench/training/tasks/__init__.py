"""Training tasks of the zoo: data, losses, networks, checkpoints and the loop that they share."""
