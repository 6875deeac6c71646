"""What lies on disk: files written whole or not at all, digests, the lock, JSON documents, atomic folder swaps."""
