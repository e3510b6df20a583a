"""What was published of Delta-KV, put to the test: each claim, its experiment and a verdict."""
