"""Makes `python -m launch` the same as the command `tdformer`."""

from launch.cli import main

main()
