"""What a network costs, side by side with a peer, as JSON."""
