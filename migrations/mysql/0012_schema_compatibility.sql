-- Which programs may use these tables: those that know at least the migration `min_version`. So an older program starts on
-- newer tables that it can use, as a rolling upgrade or a rollback wants it, and refuses others. A migration after which older
-- programs would do something wrong raises the number to its own; all others leave it alone.
-- The first programs that ask for it know 12.
CREATE TABLE schema_compatibility (
    only_row    TINYINT NOT NULL,
    min_version BIGINT  NOT NULL,
    PRIMARY KEY (only_row),
    CONSTRAINT schema_compatibility_is_one_row CHECK (only_row = 1)
) ENGINE = InnoDB
SELECT 1 AS only_row, 12 AS min_version;
