"""The tables of a store, revision by revision: alembic's files. A file that was released is never changed."""
