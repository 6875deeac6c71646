"""Training an adapter on unlabelled images before the labelled ones (ExPLoRA)."""
