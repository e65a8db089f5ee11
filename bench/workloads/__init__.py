"""Workloads: a diffusers pipeline with its sampler, conditions and real reference images."""
