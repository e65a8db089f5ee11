"""Low-rank adapters (LoRA) on packed networks, and workloads that are drawn with one."""
