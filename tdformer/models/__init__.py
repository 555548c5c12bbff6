"""The networks. Nothing here knows how they are trained."""
