"""Makes `python -m launch` the same as the command `tdformer`, which is `main` here."""

from launch import current_folder

current_folder.leave_out()  # before anything else is imported

from launch.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
