"""Loads batches: the sample order, opened data sets, augmentation, micro-batches and loader processes."""
