"""How the demo model is made: its texts, its training, its attention."""
