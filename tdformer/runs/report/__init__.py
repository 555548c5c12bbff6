"""The report of `tdformer runs compare`: a comparison as one self-contained HTML file."""
