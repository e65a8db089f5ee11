"""What a pipeline is given beside noise and conditions: images of a folder, and call arguments."""
