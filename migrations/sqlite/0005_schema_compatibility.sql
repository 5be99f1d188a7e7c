-- Which programs may use these tables: those that know at least the migration `min_version`. So an older program starts on
-- newer tables that it can use, as a rolling upgrade or a rollback wants it, and refuses others. A migration after which older
-- programs would do something wrong raises the number to its own; all others leave it alone.
-- The first programs that ask for it know 5.
CREATE TABLE schema_compatibility (
    only_row    INTEGER PRIMARY KEY CHECK (only_row = 1),
    min_version INTEGER NOT NULL
) STRICT;

INSERT INTO schema_compatibility (only_row, min_version) VALUES (1, 5);
