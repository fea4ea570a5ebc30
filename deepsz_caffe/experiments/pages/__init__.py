"""What the runs gave, as tables, figures and one HTML page."""
