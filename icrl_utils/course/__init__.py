"""What students use: checks of exercises, widgets, and the doctor."""
