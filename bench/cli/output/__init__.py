"""What verbs print: their results on stdout, everything else on stderr."""
