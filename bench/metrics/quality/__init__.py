"""Quality metrics: how close a set of generated images comes to real images."""
