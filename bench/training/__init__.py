"""Scripts that build the data sets and train the small models of the zoo."""
