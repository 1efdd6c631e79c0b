"""Files that calibrations and trainings leave for runs."""
