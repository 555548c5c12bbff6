"""The commands of `tdformer`: one file per verb. A group of verbs is one file or one folder."""
