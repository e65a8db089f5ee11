"""Results of many machines: submissions, what can be checked of them, and joining them."""
