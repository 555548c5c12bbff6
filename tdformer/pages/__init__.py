"""Self-contained HTML pages: how they are written, their style, and their charts."""
