"""The database: a copy of the records for questions in SQL. It can be thrown away and imported again."""
