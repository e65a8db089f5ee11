"""The workloads: diffusers pipelines with sampler, prompts or classes, and real images."""
