"""Engines that turn votes into a posterior over skills: the joint Gaussian and its rivals."""
