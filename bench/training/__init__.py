"""Scripts that train the small models of the zoo and build their data sets."""
