"""Changes of weights and inputs that keep the function of the network: scales, folds, branches."""
