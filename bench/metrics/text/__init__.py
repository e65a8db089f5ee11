"""Text metrics: how well images match their prompts."""
