"""Stage 05: a trained model -> answers, and an honest comparison of several."""
