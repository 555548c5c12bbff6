"""How the gradients, statistics and losses of an optimizer step are summed over the ranks."""
