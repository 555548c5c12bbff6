"""Turns a data set into the micro-batches of a rank, in an order that a seed decides."""
