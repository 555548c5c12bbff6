"""How a run gets onto machines: the command line, and starting processes."""
