"""The arena in a browser: the page, what it may ask of the server, and who may ask."""
