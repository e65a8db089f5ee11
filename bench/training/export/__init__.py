"""Writing a trained model as a pipeline folder of the zoo, with its model card."""
