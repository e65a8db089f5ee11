"""The arena: people and programs order blind images, and every vote is an event in a log."""
