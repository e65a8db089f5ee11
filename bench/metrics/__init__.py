"""The metrics: images against full-precision images, real images or prompts."""
