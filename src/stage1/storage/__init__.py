"""Files on disk: written whole or not at all, digests, the lock, JSON documents, folders swapped in one step."""
