"""Run by Alembic: migrate on the connection, and in the transaction, that `worker.migrations` hands over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
