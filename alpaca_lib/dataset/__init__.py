"""Stage 02: know the data. ROUGE-L novelty and statistics; no torch in here."""
