"""Knows the processes of a run: who am I, how do we agree, who is missing."""
