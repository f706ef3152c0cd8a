"""Around the lessons: running notebooks, their folders and results, figures, widgets."""
