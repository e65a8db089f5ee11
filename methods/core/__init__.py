"""The quantization core. It knows no method, no class of models, and nothing of the harness."""
