"""The room bench/stages."""
