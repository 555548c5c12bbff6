"""What the commands print: tables for people, JSON for programs, and progress while they work."""
