"""Tables, figures and pages of runs, made from their files alone."""
