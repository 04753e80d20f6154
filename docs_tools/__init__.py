"""What makes the documentation: hooks of mkdocs, formulas, and pictures and tables from measured rows."""
