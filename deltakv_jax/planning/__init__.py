"""What a run would take, told from shapes alone: bytes, programs, what fits, how fast at best."""
